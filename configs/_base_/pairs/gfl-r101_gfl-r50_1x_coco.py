"""The pair GFL R50 <- GFL R101; a method's config adds its hook."""

_base_ = [
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py',
    '../teachers/gfl_r101_ms-2x_coco.py',
]

custom_imports = dict(imports=['mmkd_plugin'], allow_failed_imports=False)
