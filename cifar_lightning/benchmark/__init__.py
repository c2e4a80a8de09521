"""Timing calls, and measuring a run with it."""
