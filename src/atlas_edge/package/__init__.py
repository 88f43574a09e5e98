"""Packages: several bundles of one model in a folder. `manifest` says what is in it, `choice` what of it runs here."""
