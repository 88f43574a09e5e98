"""Which tiles set the scales: `choose` them, `convergence` says how many are enough."""
