"""Reading checkpoint files: where they come from, whether they are sound, and what they fill."""
