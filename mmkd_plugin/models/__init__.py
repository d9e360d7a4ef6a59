"""Image classifiers and their backbones."""
