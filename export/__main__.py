"""`python -m atlas_edge.export` is `atlas-export`."""

from atlas_edge.export.cli import main

main()
