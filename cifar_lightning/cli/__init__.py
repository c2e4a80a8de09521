"""The commands: what they share, and a file for each."""
