"""Student: half of the teacher's width everywhere, a quarter of ResNet-18 in the backbone."""

_base_ = './deformable-detr_r18-half_digits.py'

model = dict(
    backbone=dict(base_channels=16),
    neck=dict(in_channels=[32, 64, 128], out_channels=32),
    encoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=128),
        )
    ),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=32),
            cross_attn_cfg=dict(embed_dims=32),
            ffn_cfg=dict(embed_dims=32, feedforward_channels=128),
        )
    ),
    positional_encoding=dict(num_feats=16),
    bbox_head=dict(embed_dims=32),
)
