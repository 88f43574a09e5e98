"""Training that knows the INT8 grid: `qad` distils the full-precision encoder into its quantized self."""
