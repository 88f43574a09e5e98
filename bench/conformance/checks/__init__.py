"""One file a program; `run.CHECKS` lists what they are asked."""
