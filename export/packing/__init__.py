"""Several bundles of one model in one package: `pack` puts them together, `auto` builds them."""
