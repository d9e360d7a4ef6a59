"""What the images of a model are: channels, range, statistics, size, as its config says."""
