"""Verbs of `atlas-export` beside the export itself, one file each."""
