"""Ways to execute a trained network, one file an engine."""
