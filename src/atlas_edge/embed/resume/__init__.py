"""What lets a run go on: `plan` says whether it is still the same work, `journal` keeps what was done."""
