"""Cityscapes with PSPNet R101 as the teacher; a method's config adds its hook, a student its model."""

_base_ = './cityscapes_512x512_40k.py'

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)

teacher = dict(
    config='mmseg::pspnet/pspnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
    # 40k iterations of 512x1024 crops: mIoU 78.34 (mmseg model zoo)
    checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/pspnet/pspnet_r101-d8_512x1024_40k_cityscapes/pspnet_r101-d8_512x1024_40k_cityscapes_20200604_232751-467e7cf4.pth',
)
