"""Full-precision models in PyTorch.

`load` opens one by name or folder; beside it are the students' names, timm's configs, folding, and the way to ONNX.
"""
