"""TensorRT engines.

`target` is the way from an encoder to a bundle, `build` the build itself, in a process of its own.
"""
