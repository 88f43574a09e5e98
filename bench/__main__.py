"""`python -m atlas_edge.bench` is `atlas-bench`."""

from atlas_edge.bench.cli import main

main()
