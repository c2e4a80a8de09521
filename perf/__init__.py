"""Measurements of the project itself; `make perf` runs them."""
