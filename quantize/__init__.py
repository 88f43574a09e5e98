"""Calibration and post-training quantization."""
