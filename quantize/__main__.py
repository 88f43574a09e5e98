"""`python -m atlas_edge.quantize` is `atlas-quantize`."""

from atlas_edge.quantize.cli import main

main()
