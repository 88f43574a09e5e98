"""What this machine can run: `found` looks, `checks` judges, `advice` says which variant, and what would be better."""
