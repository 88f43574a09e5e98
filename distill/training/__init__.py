"""The run itself.

`config` is all that shapes it, `run` puts it together, `loop` takes the steps, `checkpoint` lets a killed one go on.
"""
