"""What a run shows and leaves: progress, loss curve, model card."""
