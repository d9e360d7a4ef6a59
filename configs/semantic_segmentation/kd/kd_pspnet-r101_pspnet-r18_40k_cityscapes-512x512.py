"""KD on every pixel, PSPNet R18 <- PSPNet R101: all of it is recommended."""

_base_ = ['../_base_/pspnet_r18-d8.py', '../_base_/kd_from_pspnet-r101.py']
