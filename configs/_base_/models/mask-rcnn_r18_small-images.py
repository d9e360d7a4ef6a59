"""Mask R-CNN on top of the small Faster R-CNN: a mask branch with two convolutions."""

_base_ = './faster-rcnn_r18_small-images.py'

model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1),
            out_channels=64,
            featmap_strides=[8, 16],
            finest_scale=40,
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    # At most 7 objects are in an image, and every mask costs time in evaluation.
    test_cfg=dict(rcnn=dict(max_per_img=20, mask_thr_binary=0.5)),
)
