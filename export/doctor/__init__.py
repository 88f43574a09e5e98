"""What this machine can build and run: `checks` finds out, `table` shows it."""
