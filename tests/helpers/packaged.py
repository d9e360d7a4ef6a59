"""Small models of packaged configs, with made-up batches, for the tests of views."""

from __future__ import annotations

import copy
from functools import cache

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from torch import Tensor, nn

import mmkd_plugin
from benchmarks.coverage_data import MadeUp, dataset_of, image_size
from benchmarks.coverage_models import configs_root, small_model
from mmkd_plugin.taps import Recorder
from mmkd_plugin.taps.partial_forward import set_inference
from mmkd_plugin.views import LogitView, Predictions, make_logit_view

QUIET = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.MultiheadAttention,
)
KD = dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', name='kd', select='all')


@cache
def _config(name: str) -> Config:
    return Config.fromfile(configs_root() / name)


@cache
def _prototype(name: str, factor: int, seed: int) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        register_all_modules(init_default_scope=False)
        torch.manual_seed(seed)
        model = MODELS.build(small_model(name, factor, image_size(_config(name).model)))
        model.init_weights()
    for path, parameter in model.named_parameters():  # mmdet's own start makes rows nearly equal
        if 'head' in path and 'proposal' not in path and parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    return _calibrated(model, name)


@torch.no_grad()
def _calibrated(model: nn.Module, name: str) -> nn.Module:
    """Statistics of batch norms are those of a batch: with those of a new model maps vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean of all batches, of which there is one
    images = batch(model, name)['inputs']
    model.train()
    for norm in norms:
        norm.train()
    model.extract_feat(images)
    for norm in norms:
        norm.momentum = 0.1
    return model


def student(name: str, factor: int = 8, seed: int = 0) -> nn.Module:
    """In training, but without what makes its outputs others than a teacher's."""
    model = copy.deepcopy(_prototype(name, factor, seed)).train()
    for module in model.modules():
        if isinstance(module, QUIET):
            module.eval()
    at_epoch(0)
    return model


def at_epoch(epoch: int) -> None:
    """Some heads ask the message hub which epoch it is."""
    MessageHub.get_current_instance().update_info('epoch', epoch)


def teacher(name: str, factor: int = 8, seed: int = 1) -> nn.Module:
    model = copy.deepcopy(_prototype(name, factor, seed))
    set_inference(model)
    return model


def batch(model: nn.Module, name: str, images: int = 2) -> dict:
    """Made-up images, as the model's own preprocessor gives them."""
    settings = {k: v for k, v in dataset_of(_config(name)).items() if k != 'type'}
    data = MadeUp(**settings)
    return model.data_preprocessor(pseudo_collate([data[i] for i in range(images)]), True)


def step(model: nn.Module, other: nn.Module, data: dict, **term: object) -> dict[str, Tensor]:
    """The losses of one distilled step of ``model``, taught by ``other``."""
    mmkd_plugin.attach(model, other, [dict(KD, **term)], probe_size=data['inputs'].shape[-2:])
    for module in model.modules():
        if isinstance(module, QUIET):
            module.eval()
    return model(**data, mode='loss')


def read(model: nn.Module, data: dict) -> tuple[list[Predictions], LogitView, Recorder]:
    """What a student's view says after a training step."""
    view = make_logit_view('cls_logits', model)
    recorder = Recorder(model, 'student')
    recorder.listen(view.points)
    recorder.arm()
    model(**data, mode='loss')
    recorder.disarm()
    return view.read(recorder, data['data_samples']), view, recorder
