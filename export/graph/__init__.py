"""ONNX graphs looked at before they are built: `view` reads one, `rules` says what would be wrong or slow."""
