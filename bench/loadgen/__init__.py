"""A bundle under MLPerf's own LoadGen: `run` starts it in `child`, `logs` reads what it wrote."""
