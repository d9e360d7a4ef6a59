"""What a person looks at: the demo's report."""
