"""`python -m atlas_edge.distill` is `atlas-distill`."""

from atlas_edge.distill.cli import main

main()
