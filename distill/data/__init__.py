"""What is learnt from: tiles, their views, batches by step, and teachers with their features on disk."""
