"""What the demo needs of the trained models: their cost, and detections on a few images."""

from __future__ import annotations

from typing import Any, cast

import cv2
import torch

from .demo_runs import DemoRun

SHOWN_SCORE = 0.3  # detections below are not drawn


def build(run: DemoRun, load: bool) -> torch.nn.Module:
    """Builds a run's plain detector, without this plugin, and loads its weights."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.runner import load_checkpoint

    register_all_modules(init_default_scope=True)
    model = MODELS.build(run.resolved().model)
    if load:
        load_checkpoint(model, str(run.checkpoint), map_location='cpu', strict=True)
    return model.eval()


def measure_model(run: DemoRun) -> dict:
    """Counts parameters and multiply-accumulates of one image, as MMEngine counts them."""
    from mmengine.analysis import get_model_complexity_info

    size = (run.resolved().train_dataloader.dataset.get('digits') or {}).get('image_size', 128)
    model = build(run, load=False)
    with torch.no_grad():
        cost = get_model_complexity_info(
            model, input_shape=(3, size, size), show_table=False, show_arch=False
        )
    params = sum(parameter.numel() for parameter in model.parameters())
    return dict(params=params, flops=float(cost['flops']), image_size=size)


@torch.no_grad()
def gallery(student: DemoRun, distilled: DemoRun, count: int) -> list[dict]:
    """Runs both students on the first ``count`` validation images, whatever they show."""
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    if count == 0:
        return []
    models = {'student': build(student, load=True), 'distilled': build(distilled, load=True)}
    dataset = DATASETS.build(student.resolved().val_dataloader.dataset)
    entries = []
    for index in range(min(count, len(dataset))):
        batch = pseudo_collate([dataset[index]])
        path = batch['data_samples'][0].img_path
        truth = batch['data_samples'][0].gt_instances
        boxes = getattr(truth.bboxes, 'tensor', truth.bboxes)
        image = cv2.imread(path)
        assert image is not None  # the dataset has read it
        jpeg = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        entry = {
            'jpeg': jpeg.tobytes(),
            'size': list(image.shape[1::-1]),
            'truth': [dict(box=box, label=label)
                      for box, label in zip(boxes.tolist(), truth.labels.tolist())],
        }  # fmt: skip
        for role, model in models.items():  # detectors
            found = cast(Any, model).test_step(batch)[0].pred_instances
            found = found[found.scores > SHOWN_SCORE]
            rows = zip(found.bboxes.tolist(), found.labels.tolist(), found.scores.tolist())
            entry[role] = [dict(box=box, label=label, score=score) for box, label, score in rows]
        entries.append(entry)
    return entries
