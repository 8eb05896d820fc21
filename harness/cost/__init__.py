"""Cost of executed work: multiply-accumulates, latency, and the figures papers printed."""
