"""PSPNet with ResNet-18, stride 8, as in MMSegmentation's configs, for crops of 512x512."""

_base_ = './r18-d8_512x512.py'

model = dict(decode_head=dict(type='PSPHead', pool_scales=(1, 2, 3, 6)))
