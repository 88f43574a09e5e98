"""The verbs of `atlas-distill`: arguments in, a folder or a table out."""
