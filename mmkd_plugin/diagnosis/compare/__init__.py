"""What training changed: finished runs side by side."""
