"""What the demo needs of the trained models: their cost, and detections on a few images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch

from .demo_runs import DemoRun

SHOWN_SCORE = 0.3  # detections below are not drawn


def build(model: dict, checkpoint: Path | str | None = None) -> torch.nn.Module:
    """Builds a plain detector, without this plugin, and loads its weights if a file is given."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.runner import load_checkpoint

    register_all_modules(init_default_scope=True)
    detector = MODELS.build(model)
    if checkpoint is not None:
        load_checkpoint(detector, str(checkpoint), map_location='cpu', strict=True)
    return detector.eval()


def measure_model(run: DemoRun) -> dict:
    """Counts parameters and multiply-accumulates of one image, as MMEngine counts them."""
    from mmengine.analysis import get_model_complexity_info

    size = (run.resolved().train_dataloader.dataset.get('digits') or {}).get('image_size', 128)
    model = build(run.resolved().model)
    with torch.no_grad():
        cost = get_model_complexity_info(
            model, input_shape=(3, size, size), show_table=False, show_arch=False
        )
    params = sum(parameter.numel() for parameter in model.parameters())
    return dict(params=params, flops=float(cost['flops']), image_size=size)


@torch.no_grad()
def detect(models: dict[str, torch.nn.Module], dataset: Any, index: int) -> tuple[np.ndarray, dict]:
    """Runs detectors on an image of a data set.

    Args:
        models: Detectors by role.
        dataset: Of MMDetection, with annotations.
        index: Of the image.

    Returns:
        The image (H, W, 3, BGR), and the objects in it by role: dicts with box, label and score,
        and under ``'truth'`` without a score.
    """
    from mmengine.dataset import pseudo_collate

    batch = pseudo_collate([dataset[index]])
    sample = batch['data_samples'][0]
    image = cv2.imread(sample.img_path)
    assert image is not None  # the dataset has read it
    truth = sample.gt_instances
    boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
    objects = {
        'truth': [
            dict(box=box, label=label) for box, label in zip(boxes.tolist(), truth.labels.tolist())
        ]
    }
    for role, model in models.items():
        found = cast(Any, model).test_step(batch)[0].pred_instances
        found = found[found.scores > SHOWN_SCORE]
        rows = zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())
        objects[role] = [dict(box=box, label=label, score=score) for box, label, score in rows]
    return image, objects


def gallery(student: DemoRun, distilled: DemoRun, count: int) -> list[dict]:
    """Runs both students on the first ``count`` validation images, whatever they show."""
    from mmdet.registry import DATASETS

    if count == 0:
        return []
    runs = dict(student=student, distilled=distilled)
    models = {role: build(run.resolved().model, run.checkpoint) for role, run in runs.items()}
    dataset = DATASETS.build(student.resolved().val_dataloader.dataset)
    entries = []
    for index in range(min(count, len(dataset))):
        image, objects = detect(models, dataset, index)
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        entries.append(dict(jpeg=jpeg.tobytes(), size=list(image.shape[1::-1]), **objects))
    return entries
