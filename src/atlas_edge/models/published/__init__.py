"""What is published of encoders: `known.toml`, what of it a model folder does not say itself, and licences."""
