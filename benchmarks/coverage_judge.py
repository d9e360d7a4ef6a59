"""One row of the sweep of ``sweep.py``: a small pair of a packaged config, trained for a step
with each recipe."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from benchmarks.coverage_data import MadeUp, dataset_of, image_size, num_classes
from benchmarks.coverage_models import configs_root, pair_of, small_model
from mmkd_plugin.errors import ProbeError

TEACHERS, RECIPES = ('own', 'foreign'), ('gdd', 'kd', 'gdd+kd')
HEAD_STD = 0.05  # of the weights of a teacher's heads
FACTORS = (8, 1)  # widths that do not survive the division stay as they are
# Whoever has regions gets a teacher without them.
FOREIGN = dict(roi_head='gfl/gfl_r50_fpn_1x_coco.py')
OTHER_FOREIGN = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'


class NotJudged(Exception):
    """The student does not train by itself here; the message says why."""


def judge(
    config: str,
    work_dir: Path,
    tries: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """What each recipe does on the pairs of one packaged config.

    Args:
        config: below the packaged configs.
        work_dir: a folder for the runs, which leave nothing in it.
        tries: pairs of a teacher, ``'own'`` kind or ``'foreign'``, and a recipe.

    Returns:
        ``dict(pair=..., size=..., own={recipe: outcome}, foreign={recipe: outcome})``, or ``pair``
        and ``not_judged``, the reason.
    """
    quiet()
    whole = Config.fromfile(configs_root() / config)
    row: dict[str, Any] = dict(pair=pair_of(whole.model))
    try:
        factor, plain = _trainable(config, whole)
    except NotJudged as error:
        return dict(row, not_judged=str(error))
    row['divided_by'] = factor
    size = image_size(whole.model)
    data, classes = dataset_of(whole), num_classes(whole.model)
    foreign = next((name for key, name in FOREIGN.items() if key in whole.model), OTHER_FOREIGN)
    models = dict(
        own=small_model(config, max(1, factor // 2), size),
        foreign=small_model(foreign, 8, size, classes),
    )
    files = {kind: _teacher(models[kind], work_dir / f'{kind}.pth') for kind, _ in tries}
    for kind, recipe in tries:
        student = small_model(config, factor, size)
        with tempfile.TemporaryDirectory(dir=work_dir) as folder:
            outcome = attempt(student, files[kind], recipe, data, plain, Path(folder))
        row.setdefault(kind, {})[recipe] = outcome
    return row


def quiet() -> None:
    """No warnings, one thread, all of mmdet imported; a parent does it once for its children."""
    warnings.simplefilter('ignore')
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=False)


def _teacher(config: ConfigDict, file: Path) -> dict[str, Any]:
    """Config of a teacher whose heads say something: those of a new model all say nearly the same,
    so that no gradient would be left of their difference."""
    if not file.exists():
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(copy.deepcopy(config))
        model.init_weights()
        for path, parameter in model.named_parameters():
            if 'head' in path and 'proposal' not in path and parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=HEAD_STD)
        torch.save(dict(state_dict=model.state_dict()), file)
    return dict(config=dict(model=config, default_scope='mmdet'), checkpoint=str(file))


def _trainable(config: str, whole: Config) -> tuple[int, torch.nn.Module]:
    """By which number the widths can be divided, and such a student that has trained alone."""
    why = ''
    for factor in FACTORS:
        try:
            return factor, _train_alone(config, factor, whole)
        except Exception as error:
            why = last_line(error)
    raise NotJudged(why)


def _train_alone(config: str, factor: int, whole: Config) -> torch.nn.Module:
    size = image_size(whole.model)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(small_model(config, factor, size))
    model.init_weights()
    model.train()
    MessageHub.get_current_instance().update_info_dict(
        dict(epoch=0, iter=0)  # some losses change with it
    )
    dataset = MadeUp(**{k: v for k, v in dataset_of(whole).items() if k != 'type'})
    data = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    if not torch.isfinite(loss):
        raise FloatingPointError(f'its own loss is {loss.item()}')
    loss.backward()
    return model


def attempt(
    student: ConfigDict,
    teacher: dict[str, Any],
    recipe: str,
    dataset: dict[str, Any],
    plain: torch.nn.Module,
    folder: Path,
) -> dict[str, Any]:
    """Trains a pair for a step as a user would, through Runner and hook.

    Args:
        student: model config.
        teacher: as the hook takes it.
        recipe: for both.
        dataset: config of the training's.
        plain: a student without distillation, into which the checkpoint must load.
        folder: an empty one.

    Returns:
        ``dict(outcome='ok')``, or ``'refused'`` or ``'crashed'`` with ``why``.
    """
    look = Look()
    try:
        with _no_report():
            runner = Runner.from_cfg(_run_config(student, teacher, recipe, dataset, folder))
            runner.register_hook(look)
            runner.train()
        look.check()
        saved = torch.load(folder / 'epoch_1.pth', map_location='cpu', weights_only=False)
        plain.load_state_dict(saved['state_dict'], strict=True)
    except Exception as error:
        sentence = isinstance(error, ValueError) and not isinstance(error, ProbeError)
        early = look.losses is None and sentence and _ours(error)
        return dict(outcome='refused' if early else 'crashed', why=last_line(error))
    return dict(outcome='ok')


def _run_config(
    student: ConfigDict, teacher: dict[str, Any], recipe: str, dataset: dict, folder: Path
) -> Config:
    distil = dict(
        type='mmkd_plugin.DistillHook',
        teacher=teacher,
        recipe='+'.join(f'{name}:1' for name in recipe.split('+')),  # a step finds no weights
    )
    loader = dict(
        dataset=dataset,
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'),
    )
    return Config(
        dict(
            default_scope='mmdet',
            custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
            model=student,
            train_dataloader=loader,
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=100),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=1e-4), clip_grad=dict(max_norm=1.0, norm_type=2)
            ),
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1, save_optimizer=False)
            ),
            custom_hooks=[distil],
            work_dir=str(folder),
            log_level='ERROR',
            randomness=dict(seed=0),
            experiment_name='coverage',
        )
    )


class Look(Hook):
    """Takes the gradient of each distillation loss by itself, as the student gives its losses."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.losses: dict[str, float] | None = None
        self.gradients: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        model, self.losses = runner.model, {}
        keys = model.distiller.loss_keys
        parameters = [
            p for n, p in model.named_parameters() if p.requires_grad and 'distiller' not in n
        ]

        def look(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, dict):
                for key in keys:
                    if key in output:
                        self._see(key, output[key], parameters)

        model.register_forward_hook(look)

    def _see(self, key: str, loss: torch.Tensor, parameters: list) -> None:
        assert self.losses is not None
        self.losses[key] = float(loss)
        found = []
        if loss.requires_grad:
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        size = sum(float(g.double().pow(2).sum()) for g in found if g is not None)
        self.gradients[key] = math.sqrt(size) if size >= 0 else math.nan

    def check(self) -> None:
        """Raises:
        ArithmeticError: no loss, one that is not finite, or one without gradient.
        """
        if not self.losses:
            raise ArithmeticError('no distillation loss')
        for key, value in self.losses.items():
            if not math.isfinite(value):
                raise ArithmeticError(f'{key} is {value}')
            if not 0 < self.gradients[key] < math.inf:
                raise ArithmeticError(
                    f'the gradient of {key} into the student is {self.gradients[key]}'
                )


def _ours(error: BaseException) -> bool:
    """Whether the last frame of an error is the plugin's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and 'mmkd_plugin' in frames[-1].filename


def last_line(error: BaseException) -> str:
    text = ' '.join(str(error).split())
    for root in (str(configs_root().parents[2]), tempfile.gettempdir()):
        text = text.replace(root, '...')
    frames = traceback.extract_tb(error.__traceback__)
    place = f' ({Path(frames[-1].filename).name}:{frames[-1].lineno})' if frames else ''
    return f'{type(error).__name__}: {text}'[:600] + place


@contextlib.contextmanager
def _no_report() -> Iterator[None]:
    """Without the list of compilers and GPUs, and without the config in a beautiful form: a Runner
    makes both at every start, which takes longer than a step."""

    def as_it_is(text: str, **_style: Any) -> tuple[str, bool]:
        return text, True

    with (
        mock.patch('mmengine.runner.runner.collect_env', dict),
        mock.patch('yapf.yapflib.yapf_api.FormatCode', as_it_is),
        mock.patch('mmengine.config.config.FormatCode', as_it_is, create=True),  # up to 0.10.7
    ):
        yield
