"""How fast an encoder is here, and why.

Start at `run`, which puts a report together; `timing` is the measurement itself.
"""
