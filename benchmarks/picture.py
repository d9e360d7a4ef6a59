#!/usr/bin/env python
"""The picture of the README: truth, student alone and distilled student on the same images.

    python benchmarks/picture.py CONFIG ALONE.pth DISTILLED.pth --out docs/assets/digits.jpg

The images are the first ones of the config's validation set, whatever they show. Of detections on
one another the surest is drawn. Green boxes are right, red ones wrong, and dashed yellow ones were
missed, as in the report of the demo.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torchvision.ops import nms

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from mmkd_plugin.cli.running import new_parser  # noqa: E402
from mmkd_plugin.report.gallery import judge  # noqa: E402

COLORS = dict(truth='#ffffff', right='#4ade80', wrong='#fb7185', missed='#fde047')
SHOWN_SCORE = 0.3  # detections below are not drawn
SAME_PLACE = 0.5  # IoU above which only the surest detection is drawn
Entry = dict[str, Any]


def detect(config: str, checkpoints: dict[str, str], count: int) -> list[Entry]:
    """Runs the models on the first images of the validation set.

    Args:
        config: Of the student.
        checkpoints: Files by role, ``'student'`` and ``'distilled'``.
        count: Number of images.

    Returns:
        For each image a dict with ``image`` (H, W, 3, RGB), ``truth``, and detections by role.
    """
    from mmdet.registry import DATASETS
    from mmengine.config import Config

    import mmkd_plugin.datasets  # noqa: F401  (registers the digits)

    cfg = Config.fromfile(config)
    models = {role: build(cfg.model, file) for role, file in checkpoints.items()}
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    entries = []
    for index in range(min(count, len(dataset))):
        image, objects = detect_image(models, dataset, index)
        entry: Entry = dict(image=np.ascontiguousarray(image[..., ::-1]), truth=objects['truth'])
        entry['classes'] = dataset.metainfo['classes']
        for role in models:
            entry[role] = surest(objects[role])
        entries.append(entry)
    return entries


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


@torch.no_grad()
def detect_image(
    models: dict[str, torch.nn.Module], dataset: Any, index: int
) -> tuple[np.ndarray, dict]:
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


def surest(found: list[Entry]) -> list[Entry]:
    """Of detections on one another the one with the highest score; the highest first."""
    if not found:
        return []
    boxes, scores = (torch.tensor([item[key] for item in found]) for key in ('box', 'score'))
    return [found[index] for index in nms(boxes, scores, SAME_PLACE)]


def draw(entries: list[Entry], titles: dict[str, str], out: Path) -> None:
    """Writes the picture: a row for each image, a column for the truth and each role."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    columns = dict(truth='Truth', **titles)
    figure = Figure(figsize=(3 * len(columns), 3.1 * len(entries)), layout='constrained')
    grid = figure.subplots(len(entries), len(columns), squeeze=False)
    for line, entry in zip(grid, entries):
        for axes, (role, title) in zip(line, columns.items()):
            axes.imshow(entry['image'], interpolation='lanczos')
            axes.set_axis_off()
            if role == 'truth':
                said = f'{title}: {len(entry["truth"])} digits'
            else:
                right, hit = judge(entry[role], entry['truth'])
                said = f'{title}: {sum(hit)} of {len(hit)} found, {right.count(False)} wrong'
                for item, found in zip(entry['truth'], hit):
                    if not found:
                        _box(axes, item['box'], COLORS['missed'], dashed=True)
            for number, item in enumerate(entry[role]):
                name = entry['classes'][item['label']]
                if role == 'truth':
                    _box(axes, item['box'], COLORS['truth'], name)
                else:
                    color = COLORS['right' if right[number] else 'wrong']
                    _box(axes, item['box'], color, f'{name}  {item["score"]:.2f}')
            axes.set_title(said, fontsize=10, color='#0f172a')
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100, pil_kwargs=dict(quality=85))


def _box(axes: Any, box: list[float], color: str, text: str = '', dashed: bool = False) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x1, y1, x2, y2 = box
    style = '--' if dashed else '-'
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=1.8, ls=style)
    )
    if text:
        inside = y1 < 8  # no room above
        axes.text(
            x1 + inside,
            y1 + 1 if inside else y1 - 1,
            text,
            color=color,
            fontsize=9,
            fontweight='bold',
            va='top' if inside else 'bottom',
            path_effects=[withStroke(linewidth=2, foreground='black')],
            clip_on=True,
        )


def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument('config', help='of the student')
    parser.add_argument('alone', help='checkpoint of the student alone')
    parser.add_argument('distilled', help='checkpoint of the distilled student')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'assets' / 'digits.jpg')
    parser.add_argument('--images', type=int, default=3, help='default: 3')
    args = parser.parse_args(argv)
    entries = detect(args.config, dict(student=args.alone, distilled=args.distilled), args.images)
    draw(entries, dict(student='Student alone', distilled='Student distilled'), args.out)


if __name__ == '__main__':
    main()
