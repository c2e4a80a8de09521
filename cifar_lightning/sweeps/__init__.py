"""Many runs: jobs, where they run, the search."""
