"""The machine below: files that appear whole or not at all, processes, and what the hardware is."""
