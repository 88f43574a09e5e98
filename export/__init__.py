"""ONNX, OpenVINO and TensorRT; writes bundles.

Start at `cli`, then `pipeline`: load, calibrate, quantize, build, verify, bench.
"""
