"""What a run shows and leaves: progress, loss curve, licence, model card."""
