"""TensorRT engines.

`graphs` writes the ONNX that `build` parses and builds, in a process of its own (`child`); `bundle` puts the engine in.
"""
