"""Precisions written into ONNX: Q/DQ for INT8 and FP8, half precision, and the form that TensorRT wants.

Start at `qdq`.
"""
