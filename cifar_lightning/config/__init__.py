"""The configuration: its schema, its rules, and its errors in one line."""
