"""Whole slides: `end_to_end` is how fast one is embedded, `check` whether what was written for it is right."""
