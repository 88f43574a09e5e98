"""`python -m atlas_edge.embed` is `atlas-embed`."""

from atlas_edge.embed.cli import main

main()
