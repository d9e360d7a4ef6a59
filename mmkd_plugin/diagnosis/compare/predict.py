"""Predicts with the model of a finished run on its validation set, once: the result is kept."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.registry import EVALUATOR, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.amp import autocast
from mmengine.structures import BaseDataElement

from ...checkpoints.file import few
from ...checkpoints.fit import bad_numbers
from ...files import whole_file
from ...hooks.loaded_weights import check_test
from ...teacher import build_model
from .errors import CompareError
from .predictions import Predictions, check_plain
from .reading import IGNORED, Reader, truth_of_coco
from .work_dirs import FinishedRun

CACHE = 'compare_predictions.pt'
_VERSION = 2  # of what is kept
# Metrics whose numbers this package accumulates itself, from arrays of each image.
_KNOWN = ('IoUMetric', 'Accuracy', 'ClsAccuracy')

Tell = Callable[[int, int], None]


def predictions_of(run: FinishedRun, tell: Tell | None = None) -> Predictions:
    """The predictions of a run: those in its work dir, if they are of this checkpoint and set.

    Args:
        run: the run.
        tell: called with how many images are done, and of how many.

    Raises:
        CompareError: a config without a set to predict on, or without images in it.
    """
    key = _fingerprint(run)
    kept = _kept(run.folder / CACHE, key)
    if kept is None:
        kept = _predict(run, tell)
        _keep(run.folder / CACHE, key, kept)
    return kept


# -- what is kept ---------------------------------------------------------------------------------


def _fingerprint(run: FinishedRun) -> str:
    """Changes with the checkpoint and with all of the config that predictions depend on."""
    split = run.split
    keys = ('model', 'data_preprocessor', 'default_scope', 'custom_imports',
            f'{split}_dataloader', f'{split}_evaluator', f'{split}_cfg')  # fmt: skip
    parts = {key: run.config[key] for key in keys if key in run.config}
    text = f'{_VERSION} {run.digest} {Config(dict(content=parts)).pretty_text}'
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(path: Path, key: str) -> Predictions | None:
    if not path.is_file():
        return None
    try:
        content = torch.load(path, weights_only=True)
        return Predictions.of_plain(content['predictions']) if content['key'] == key else None
    except Exception:  # a file that is damaged or of another version is written anew
        return None


def _keep(path: Path, key: str, found: Predictions) -> None:
    """Writes the predictions beside the checkpoint; a folder that is read-only stays as it is."""
    with contextlib.suppress(OSError), whole_file(path) as part:
        torch.save(dict(key=key, predictions=found.plain()), part)


# -- predicting -----------------------------------------------------------------------------------


@contextlib.contextmanager
def in_scope(config: Config) -> Iterator[None]:
    """Builds within it find what the config's project has registered; nothing is printed."""
    scope = config.get('default_scope') or 'mmengine'
    with (
        DefaultScope.overwrite_default_scope(scope),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # of code that is not the user's
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


@torch.no_grad()
def _predict(run: FinishedRun, tell: Tell | None) -> Predictions:
    with in_scope(run.config):
        model = _trained_model(run)
        loader = build_loader(run)
        meta = dict(getattr(loader.dataset, 'metainfo', None) or {})
        evaluator = build_evaluator(run.evaluator)
        evaluator.dataset_meta = meta
        classes = class_names(meta)
        ignored = (getattr(metric, 'ignore_index', None) for metric in evaluator.metrics)
        reader = Reader(next((index for index in ignored if index is not None), IGNORED))
        half = bool((run.config.get(f'{run.split}_cfg') or {}).get('fp16', False))
        seconds, shape = [], None
        for batch in loader:
            shape = shape or _image_shape(model, batch)
            before = len(reader.names)
            outputs, took = _timed_step(model, batch, half)
            samples = [o.to_dict() if isinstance(o, BaseDataElement) else o for o in outputs]
            reader.add(samples, len(classes))
            seconds.append(took / max(1, len(reader.names) - before))
            evaluator.process(data_samples=outputs, data_batch=batch)
            if tell is not None:
                tell(len(reader.names), len(loader.dataset))
        kept = [list(metric.results) for metric in evaluator.metrics]
        found = reader.predictions(_evaluated(evaluator, len(loader.dataset)), classes)
        for place, metric in enumerate(evaluator.metrics):
            if _resamples(metric, kept[place], found.images):
                found.results[place] = kept[place]
        found.meta = {key: value for key, value in meta.items() if check_plain(value)}
        _take_coco_truth(found, evaluator)
        found.cost = _cost(model, seconds, shape)
    return found


def _trained_model(run: FinishedRun) -> Any:
    """The model of the run, with its weights.

    Raises:
        CompareError: weights that are not finite.
        CheckpointError: a file of another network.
    """
    model: Any = build_model(run.config)
    name = f'checkpoint={str(run.checkpoint)!r}'
    check_test(model, run.weights, name)
    if bad := bad_numbers(model, list(model.state_dict())):
        raise CompareError(
            f'{name} holds numbers that no trained network has: {few(bad)}. The run in '
            f'{run.folder} had diverged; compare an earlier checkpoint (--best), or train it anew '
            'with a smaller learning rate.'
        )
    return model.to(get_device()).eval()


def _timed_step(model: Any, batch: Any, half: bool) -> tuple[Any, float]:
    began = time.perf_counter()
    with autocast(enabled=half):
        outputs = model.val_step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return outputs, time.perf_counter() - began


def build_loader(run: FinishedRun) -> Any:
    """The loader of the set that is predicted on.

    Raises:
        CompareError: if there is no image in it.
    """
    key = f'{run.split}_dataloader'
    empty = CompareError(
        f'The {run.split} set of {run.folder} has 0 images: look at {key}.dataset (ann_file, '
        'data_prefix, indices, filter_cfg) in the config there.'
    )
    try:
        loader = Runner.build_dataloader(run.config[key], seed=0)
    except ValueError as error:
        if 'need at least one array' in str(error):  # MMEngine's data sets join their images
            raise empty from error
        raise
    if not len(loader.dataset):
        raise empty
    return loader


def build_evaluator(config: Any) -> Evaluator:
    """Builds an evaluator as a Runner does."""
    if isinstance(config, dict) and 'metrics' in config:
        return EVALUATOR.build(dict({'type': 'Evaluator'}, **config))
    return Evaluator(config)


def class_names(meta: dict) -> tuple[str, ...]:
    classes = meta.get('classes', meta.get('CLASSES')) or ()
    return (classes,) if isinstance(classes, str) else tuple(map(str, classes))


def _evaluated(evaluator: Evaluator, images: int) -> dict[str, float]:
    """The numbers of the evaluator; AP of a model that detects nothing is 0, not missing."""
    metrics = evaluator.evaluate(images)
    found = {str(key): float(value) for key, value in metrics.items() if _is_number(value)}
    for metric in evaluator.metrics:
        if _coco_api(metric) is not None:
            for kind in set(metric.metrics) & {'bbox', 'segm'}:
                for part in ('', '_50', '_75', '_s', '_m', '_l'):
                    found.setdefault(f'{metric.prefix}/{kind}_mAP{part}', 0.0)
    return found


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _resamples(metric: Any, results: list, images: int) -> bool:
    """Whether a metric can be computed on other sets of images from what it keeps of each."""
    if type(metric).__name__ in _KNOWN or _coco_api(metric) is not None:
        return False
    return len(results) == images and check_plain(results)


def _coco_api(metric: Any) -> Any:
    return getattr(metric, '_coco_api', None)


def _take_coco_truth(found: Predictions, evaluator: Evaluator) -> None:
    """Objects as the annotation file has them come before those that a pipeline has changed."""
    if found.task != 'detection':
        return
    for metric in evaluator.metrics:
        api = _coco_api(metric)
        if api is not None:
            categories = metric.cat_ids
            if categories is None:  # a metric without a detection has not looked
                categories = api.getCatIds(catNms=list(found.classes))
            found.truth = truth_of_coco(api, categories, found.ids)
            return


# -- cost -----------------------------------------------------------------------------------------


def _image_shape(model: Any, batch: Any) -> tuple[int, ...] | None:
    """(channels, height, width) of an image as the network gets it."""
    prepared = model.data_preprocessor(batch, False)
    inputs = prepared.get('inputs') if isinstance(prepared, dict) else None
    if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
        return tuple(inputs.shape[1:])
    return None


def _cost(model: Any, seconds: list[float], shape: tuple[int, ...] | None) -> dict[str, Any]:
    usual = seconds[1:] or seconds  # the first batch sets things up
    return dict(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=None if shape is None else _flops(model, shape),
        image_size=None if shape is None else list(shape[1:]),
        seconds_per_image=statistics.median(usual),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU',
    )


def _flops(model: Any, shape: tuple[int, ...]) -> float | None:
    """Multiply-accumulates of one image as MMEngine counts them; None where it cannot."""
    from mmengine.analysis import get_model_complexity_info

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            counted = get_model_complexity_info(
                model, input_shape=shape, show_table=False, show_arch=False
            )
        return float(counted['flops'])
    except Exception:  # forward('tensor') of many models takes more than an image
        return None
