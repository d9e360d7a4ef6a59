"""PSPNet with the first three stages of a full-width ResNet-18, for small images, from scratch.

Stride 8 like MMSegmentation's PSPNet-R18. Its fourth stage, dilated, would be nearly half of all
the work, and its auxiliary head is left out, too. The numbers
of norm, class weights and learning rate were chosen on the student alone.
"""

model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
    ),
    backbone=dict(
        type='ResNetV1c',
        depth=18,
        num_stages=3,
        out_indices=(0, 1, 2),
        dilations=(1, 1, 2),
        strides=(1, 2, 1),
        contract_dilation=True,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=None,
    ),
    decode_head=dict(
        type='PSPHead',
        in_channels=256,
        in_index=2,
        channels=64,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.0,
        num_classes=11,
        # Pooled to 1x1, a batch of 8 gives batch norm 8 numbers a channel: it did not learn.
        norm_cfg=dict(type='GN', num_groups=8, requires_grad=True),
        align_corners=False,
        # Background is five sixths of all pixels; with equal weights it is the answer everywhere.
        loss_decode=dict(
            type='CrossEntropyLoss',
            use_sigmoid=False,
            class_weight=[0.2, *[1.0] * 10],
            loss_weight=1.0,
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
