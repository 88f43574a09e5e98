"""Which numbers: ranges, grids and rounding of weights, in PyTorch and without any runtime."""
