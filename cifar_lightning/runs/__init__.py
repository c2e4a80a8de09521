"""What is known of a run: its name, its folder, its records, its rows of the results table."""
