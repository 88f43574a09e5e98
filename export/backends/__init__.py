"""What differs between targets where bundles are made: one file a target. `base` says what a backend is."""
