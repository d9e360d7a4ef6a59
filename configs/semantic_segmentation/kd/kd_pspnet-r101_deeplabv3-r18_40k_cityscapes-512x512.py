"""KD on every pixel, DeepLabV3 R18 <- PSPNet R101: all of it is recommended."""

_base_ = ['../_base_/deeplabv3_r18-d8.py', '../_base_/kd_from_pspnet-r101.py']
