"""Tile sets on disk, a file a form: each streams records and decodes one tile; `open.py` tells them apart."""
