"""Which layers cost accuracy in INT8: `measure` them one by one on the copy that `toggles` makes."""
