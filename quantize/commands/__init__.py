"""The verbs of `atlas-quantize`, one file each: arguments in, files or a table out."""
