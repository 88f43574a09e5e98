"""INT8 for OpenVINO: `grids` and `graph` for vision transformers, `nncf` for everything else.

Start at `nncf`, which also chooses between the two.
"""
