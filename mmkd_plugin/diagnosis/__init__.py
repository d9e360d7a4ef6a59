"""What can be known of a pair before a run, and of runs after it."""
