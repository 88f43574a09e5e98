"""One thin encoder a runtime; `atlas_edge.bundle.open_bundle` chooses."""
