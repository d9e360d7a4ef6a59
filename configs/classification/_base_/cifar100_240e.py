"""What the networks of ../cifar100 share; a network's file names its backbone only."""

_base_ = ['./datasets/cifar100.py', './schedules/cifar_240e.py', './runtime.py']
