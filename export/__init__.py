"""ONNX, OpenVINO and TensorRT; writes bundles."""
