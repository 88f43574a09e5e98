"""Which variant of a package is best on this machine: `run` measures, `rows` says why."""
