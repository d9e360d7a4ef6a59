"""What the tests of the configs share: which there are, one iteration of each, smaller models.

Small models come from the configs themselves: only numbers change, so that a small pair walks
through the same code, with the terms exactly as they are written.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import detectors
import yaml
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook

from mmkd_plugin.model_config import load_model_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
WIDTH = 16  # of the small students; their teachers have twice as much
CKD = 'detection/ckd/ckd_'
MASK_CKD = 'instance_segmentation/ckd/ckd_'
FASTER = 'faster-rcnn-r101_faster-rcnn-r50_2x_coco'
RETINANET = 'retinanet-r101_retinanet-r50_2x_coco'
GFL = 'gfl-r101_gfl-r50_1x_coco'
DETR = 'deformable-detr-refine-twostage-r50_deformable-detr-r50_50e_coco'
SEGMENTATION = 'semantic_segmentation/'
PSPNET = 'pspnet-r101_pspnet-r18_40k_cityscapes-512x512'
DEEPLAB = 'pspnet-r101_deeplabv3-r18_40k_cityscapes-512x512'

# config -> the recipe whose terms it has written out
LOGIT_CONFIGS = {
    f'detection/kd/kd_{FASTER}': 'kd',
    f'detection/kd/kd_{RETINANET}': 'kd',
    f'detection/kd/kd_{GFL}': 'kd',
    f'detection/kd/kd-bins_{GFL}': 'kd+kd-bins',
    'detection/kd/kd_cascade-rcnn-r101_cascade-rcnn-r50_20e_coco': 'kd',
    f'detection/kd/kd_{DETR}': 'kd',
    'detection/kd/kd_dino-5scale-swin-l_dino-4scale-r50_12e_coco': 'kd',
    f'detection/dkd/dkd_{FASTER}': 'dkd',
    f'detection/loca/loca_{FASTER}': 'loca',
    f'detection/loca/loca_{RETINANET}': 'loca',
    f'detection/loca/loca_{GFL}': 'loca',
    f'detection/ipwd/ipwd_{FASTER}': 'ipwd',
    f'detection/ipwd/ipwd_{RETINANET}': 'ipwd',
    f'detection/ipwd/ipwd_{GFL}': 'ipwd',
    f'{CKD}{FASTER}': 'ckd',
    f'{CKD}faster-rcnn-r101_faster-rcnn-r18_2x_coco': 'ckd',
    f'{CKD}faster-rcnn-r50_faster-rcnn-mobilenet-v2_2x_coco': 'ckd',
    f'{CKD}{RETINANET}': 'ckd',
    f'{CKD}{GFL}': 'ckd',
    f'detection/gdd/gdd-dkd_{FASTER}': 'gdd+dkd',
    f'detection/gdd/gdd-kd_{RETINANET}': 'gdd+kd',
    f'detection/gdd/gdd-kd-bins_{GFL}': 'gdd+kd+kd-bins',
    'detection/heterogeneous/gdd-kd_faster-rcnn-r101_gfl-r50_1x_coco': 'gdd+kd',
    'detection/heterogeneous/gdd-kd_gfl-r101_fcos-r50_1x_coco': 'gdd+kd',
    f'{MASK_CKD}mask-rcnn-r101_mask-rcnn-r50_2x_coco': 'ckd',
    f'{MASK_CKD}mask-rcnn-r101_mask-rcnn-r18_2x_coco': 'ckd',
    f'{MASK_CKD}mask-rcnn-r50_mask-rcnn-mobilenet-v2_2x_coco': 'ckd',
    'instance_segmentation/kd/kd_mask-rcnn-r101_mask-rcnn-r50_2x_coco': 'kd+kd-masks',
    'instance_segmentation/kd/kd_solo-r101_solo-r50_1x_coco': 'kd+kd-masks',
}
# config -> recipe, and GDD's alpha
CITYSCAPES_CONFIGS = {
    f'{SEGMENTATION}gdd/gdd_{PSPNET}': ('gdd-shared', 145.0),
    f'{SEGMENTATION}gdd/gdd_{DEEPLAB}': ('gdd-shared', 175.0),
    f'{SEGMENTATION}kd/kd_{PSPNET}': ('kd', None),
    f'{SEGMENTATION}kd/kd_{DEEPLAB}': ('kd', None),
}


@cache
def read(name: str) -> Config:
    """A config of ours; do not edit what is returned."""
    return Config.fromfile(CONFIGS / f'{name}.py')


def hook_of(config: Config) -> ConfigDict:
    (hook,) = [h for h in config.custom_hooks if h.type == 'mmkd_plugin.DistillHook']
    return hook


@cache
def zoo(package: str = 'mmdet') -> dict[str, str]:
    """Returns the configs of a package's model zoo by the address of their weights."""
    import importlib

    folder = Path(importlib.import_module(package).__file__).parent / '.mim' / 'configs'
    found = {}
    for file in [*folder.glob('*/metafile.yml'), *folder.glob('*/metafile.yaml')]:
        content = yaml.safe_load(file.read_text())
        for model in content['Models'] if isinstance(content, dict) else content:
            weights = model.get('Weights', [])
            for address in [weights] if isinstance(weights, str) else weights:
                found[address] = model['Config'].removeprefix('configs/')
    return found


class Watch(Hook):
    """Reads the plan and the losses of a run that lasts one iteration."""

    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.plan = runner.model.distiller.plan()
        self.losses = {k: v.item() for k, v in outputs.items() if 'loss' in k}


def one_iteration(
    config: Config, data_root: Path, work_dir: Path, scale: tuple[int, int] = (160, 128)
) -> Config:
    """Turns a COCO config into one iteration of one small image, without any download."""
    loader = config.train_dataloader
    loader.update(batch_size=1, num_workers=0, persistent_workers=False)
    loader.dataset.data_root = f'{data_root}/'
    resize = dict(type='Resize', scale=scale, keep_ratio=True)
    loader.dataset.pipeline = [
        resize if 'Resize' in step.type or step.type == 'RandomChoice' else step
        for step in loader.dataset.pipeline
    ]
    config.model.backbone.init_cfg = None
    hook_of(config).teacher.update(checkpoint=None, allow_random=True)
    hook_of(config).probe_size = (128, 128)
    return one_step(config, work_dir)


def one_step(config: Config, work_dir: Path) -> Config:
    """One training step, no validation, nothing written but the log."""
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=10)
    config.update(
        param_scheduler=None,
        work_dir=str(work_dir),
        log_level='WARNING',
        randomness=dict(seed=0),
    )
    for part in ('val', 'test'):
        for key in ('cfg', 'dataloader', 'evaluator'):
            config[f'{part}_{key}'] = None
    config.default_hooks.checkpoint = None  # hundreds of megabytes that nobody reads
    return config


def shrink(config: Config) -> Config:
    """Makes student and teacher of a config small; the teacher becomes a dict."""
    small = copy.deepcopy(config)
    small.model = small_model(small, WIDTH)
    hook = hook_of(small)
    hook.teacher.config = small_teacher(hook.teacher.config)
    return small


def small_teacher(config: str) -> dict:
    """The model of a teacher's config, small."""
    loaded = load_model_config(config)
    return dict(model=small_model(loaded, 2 * WIDTH), default_scope=loaded.default_scope)


def small_model(config: Config, width: int) -> ConfigDict:
    """The model of a config with `width` channels in neck and head, and 80 classes as before."""
    model = copy.deepcopy(config.model)
    if model.type == 'EncoderDecoder':
        return _small_segmenter(model, width)
    if model.type == 'DeformableDETR' and model.as_two_stage:
        width = 256  # its second stage embeds boxes in 512 numbers, whatever the config says
    detectors._shrink(model, width, classes=80)
    model.neck.in_channels = _small_backbone(model.backbone, width)
    head = model.get('bbox_head') or {}
    if head.get('type') in ('DeformableDETRHead', 'DINOHead'):
        head.embed_dims = width
    if head.get('type') in ('GFLHead', 'FCOSHead'):  # 32 groups are their default
        head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)
    if model.get('mask_head', {}).get('type') == 'SOLOHead':
        model.mask_head.num_grids = [8, 6, 5, 4, 3]
    return model


def _small_backbone(backbone: ConfigDict, width: int) -> list[int]:
    """Returns the channels of its outputs."""
    if backbone.type == 'ResNet':
        backbone.update(depth=18, base_channels=width // 2, frozen_stages=-1, style='pytorch')
        return [width // 2 * 2**stage for stage in backbone.out_indices]
    if backbone.type == 'MobileNetV2':
        backbone.widen_factor = 0.25
        return [8, 8, 24, 80]
    if backbone.type == 'SwinTransformer':
        backbone.update(depths=[1] * 4, num_heads=[1, 2, 4, 8], embed_dims=width, window_size=4)
        return [width * 2**stage for stage in backbone.out_indices]
    raise ValueError(f'No small version of {backbone.type} is known.')


def _small_segmenter(model: ConfigDict, width: int) -> ConfigDict:
    norm = dict(type='BN', requires_grad=True)  # SyncBN does not train on the CPU
    model.pretrained = None
    model.backbone.update(
        depth=18, base_channels=width // 2, stem_channels=width // 2, norm_cfg=norm
    )
    for head, channels in (('decode_head', 4 * width), ('auxiliary_head', 2 * width)):
        model[head].update(in_channels=channels, channels=width, norm_cfg=norm)
    return model
