"""What the networks of ../imagenet share."""

_base_ = ['./datasets/imagenet.py', './schedules/imagenet_100e.py', './runtime.py']
