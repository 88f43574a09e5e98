"""What a model's embeddings lost against a reference's, on the same tiles.

Start at `measure`; one file a figure beside it.
"""
