"""Speed, accuracy drop, gates and reports."""
