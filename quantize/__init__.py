"""Calibration and post-training quantization.

`recipe` and `plan` are the words (a precision is declared in `atlas_edge.targets`); `tiles` chooses what sets the
scales, `numerics` the grids, `openvino` and `onnx` write them into graphs.
"""
