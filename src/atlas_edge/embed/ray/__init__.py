"""Thousands of slides over several machines: `atlas-embed ray`."""
