"""What other people's programs say of a bundle's files: a check a program in `checks`, all of them in `run`."""
