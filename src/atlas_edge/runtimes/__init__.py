"""One thin encoder a runtime."""
