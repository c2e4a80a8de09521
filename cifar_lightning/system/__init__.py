"""Files, locks, signals, streams, cores, and what machine this is."""
