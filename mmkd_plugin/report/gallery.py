"""The pictures of a report: what runs predict, drawn as vectors over the images."""

from __future__ import annotations

import base64
import colorsys
import html
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..diagnosis.compare.comparison import ComparedRun, Comparison
from ..diagnosis.compare.differing import SHOWN_SCORE, image_reader, most_different
from ..diagnosis.compare.objects import Objects
from .labels import place_labels

HIT_IOU = 0.5
LARGEST = 640  # pixels of an image in the report
_LETTER = 0.62  # width of a letter by its height
_IGNORED = 255

Mark = tuple[list[float], str, str, str]  # box, label, what hovering tells, kind


def judge(found: list[dict], truth: list[dict]) -> tuple[list[bool], list[bool]]:
    """Matches detections to objects, best score first: same class and an IoU of at least 0.5.

    Returns:
        For each detection whether it is right, and for each object whether it was found.
    """
    import torch
    from torchvision.ops import box_iou

    corners = [
        torch.tensor([item['box'] for item in items], dtype=torch.float64).reshape(-1, 4)
        for items in (found, truth)
    ]
    overlaps = box_iou(*corners).tolist()
    right, hit = [False] * len(found), [False] * len(truth)
    for index in sorted(range(len(found)), key=lambda i: -found[i]['score']):
        best, best_iou = None, HIT_IOU
        for number, target in enumerate(truth):
            iou = overlaps[index][number]
            if not hit[number] and target['label'] == found[index]['label'] and iou >= best_iou:
                best, best_iou = number, iou
        if best is not None:
            right[index] = hit[best] = True
    return right, hit


def gallery(comparison: Comparison, count: int) -> str:
    """The images on which the first two runs differ most: truth, base and run side by side."""
    chosen = most_different(comparison, count) if count else []
    if not chosen:
        return '<p class="note">There is no image on which the runs differ.</p>'
    read = image_reader(comparison.pairs[0][0])
    rows = []
    for index, before, after in chosen:
        image = read(index)
        if image is not None:
            rows.append(_row(comparison, index, image, (before, after)))
    missing = len(chosen) - len(rows)
    gone = f'<p class="note">{missing} images could not be read.</p>' if missing else ''
    return ''.join(rows) + gone


def _row(
    comparison: Comparison, index: int, image: np.ndarray, quality: tuple[float, float]
) -> str:
    pair = comparison.pairs[0]
    name = html.escape(pair[0].found.names[index])
    told = f'{name}: {quality[0]:.2f} → {quality[1]:.2f}'
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    small = image if scale == 1 else cv2.resize(image, None, fx=scale, fy=scale)
    task = pair[0].found.task
    if task == 'detection':
        panels = _detection_panels(comparison, index, small, image.shape[1] / small.shape[1])
    elif task == 'segmentation':
        panels = _map_panels(comparison, index, small)
    else:
        panels = _class_panel(comparison, index, small)
    return f'<h3>{told}</h3><div class="trio">{"".join(panels)}</div>'


def _panel(image: np.ndarray, marks: Sequence[Mark], caption: str) -> str:
    """An image with boxes: the large ones lie below, labels of good scores are placed first."""
    height, width = image.shape[:2]
    code = base64.b64encode(
        cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    ).decode('ascii')
    letter = max(width, height) / 24
    boxes = [tuple(box) for box, *_ in marks]
    widths = [len(label) * letter * _LETTER + letter * 0.4 for _, label, *_ in marks]
    places = place_labels(boxes, widths, letter * 1.15, (width, height))  # type: ignore[arg-type]
    order = sorted(range(len(marks)), key=lambda i: -_area(marks[i][0]))
    parts = [f'<image href="data:image/jpeg;base64,{code}" width="{width}" height="{height}"/>']
    for i in order:
        (x1, y1, x2, y2), label, hover, kind = marks[i]
        drawn = (
            f'<rect class="box" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
            f'height="{y2 - y1:.1f}"/>'
        )
        place = places[i]
        if label and place is not None:
            drawn += (
                f'<rect class="chip" x="{place[0]:.1f}" y="{place[1]:.1f}" '
                f'width="{place[2] - place[0]:.1f}" height="{place[3] - place[1]:.1f}"/>'
                f'<text x="{place[0] + letter * 0.2:.1f}" y="{place[3] - letter * 0.27:.1f}" '
                f'font-size="{letter:.1f}">{html.escape(label)}</text>'
            )
        parts.append(f'<g class="mark {kind}"><title>{html.escape(hover)}</title>{drawn}</g>')
    stroke = letter / 7
    said = html.escape(caption)
    svg = (
        f'<svg viewBox="0 0 {width} {height}" style="--stroke:{stroke:.2f}px" role="img" '
        f'aria-label="{said}">{"".join(parts)}</svg>'
    )
    return f'<figure>{svg}<figcaption>{said}</figcaption></figure>'


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


# -- detection ------------------------------------------------------------------------------------


def _detection_panels(
    comparison: Comparison, index: int, image: np.ndarray, shrunk: float
) -> list[str]:
    names = comparison.classes
    first = comparison.pairs[0][0].found
    assert first.truth is not None and first.found is not None  # detection has both
    truth = _items(first.truth, index, shrunk)
    marks: list[Mark] = [
        (item['box'], names[item['label']], names[item['label']], 'truth') for item in truth
    ]
    panels = [_panel(image, marks, f'Truth: {len(truth)} objects')]
    for side, one in zip(comparison.names, comparison.pairs[0]):
        assert one.found.found is not None
        found = [
            item for item in _items(one.found.found, index, shrunk) if item['score'] > SHOWN_SCORE
        ]
        found.sort(key=lambda item: -item['score'])
        right, hit = judge(found, truth)
        marks = []
        for item, good in zip(found, right):
            name = names[item['label']]
            hover = f'{name} {item["score"]:.2f}, {"right" if good else "wrong"}'
            marks.append((item['box'], name[:14], hover, 'right' if good else 'wrong'))
        marks += [
            (item['box'], '', f'{names[item["label"]]}, missed', 'missed')
            for item, good in zip(truth, hit)
            if not good
        ]
        caption = f'{side}: {sum(hit)} of {len(hit)} found, {right.count(False)} wrong'
        panels.append(_panel(image, marks, caption))
    return panels


def _items(objects: Objects, index: int, shrunk: float) -> list[dict[str, Any]]:
    own = np.flatnonzero((objects.image == index) & ~objects.crowd)
    boxes = objects.box[own] / shrunk
    boxes[:, 2:] += boxes[:, :2]
    rows = zip(boxes.tolist(), objects.label[own].tolist(), objects.score[own].tolist())
    return [dict(box=box, label=label, score=score) for box, label, score in rows]


# -- segmentation and classification --------------------------------------------------------------


def _map_panels(comparison: Comparison, index: int, image: np.ndarray) -> list[str]:
    """The classes of the pixels as colours over the image, and what the colours mean."""
    names = comparison.classes
    first = comparison.pairs[0][0].found
    maps = [('Truth', first.truth_maps[index])]
    maps += [
        (side, one.found.maps[index]) for side, one in zip(comparison.names, comparison.pairs[0])
    ]
    colors = _palette(len(names))
    panels, seen = [], set()
    for told, code in maps:
        labels: Any = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
        labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        known = labels < len(names)
        paint = image.copy()
        paint[known] = (0.35 * image[known] + 0.65 * colors[labels[known]]).astype(np.uint8)
        seen |= set(np.unique(labels[known]).tolist())
        panels.append(_panel(paint, [], told))
    legend = ''.join(
        f'<span><i style="background:rgb{tuple(colors[label][::-1].tolist())}"></i>'
        f'{html.escape(names[label])}</span>'
        for label in sorted(seen)
    )
    return [*panels, f'<p class="legend">{legend}</p>']


def _palette(count: int) -> np.ndarray:
    """(count, 3) BGR colours whose neighbours are far apart."""
    colors = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, 0.95) for i in range(count)]
    return (np.array(colors)[:, ::-1] * 255).astype(np.uint8)


def _class_panel(comparison: Comparison, index: int, image: np.ndarray) -> list[str]:
    """The image, and what each run takes it for."""
    names = comparison.classes
    first = comparison.pairs[0][0].found
    lines = [] if first.labels is None else [('Truth', names[first.labels[index]])]
    for side, one in zip(comparison.names, comparison.pairs[0]):
        lines.append((side, _answer(one, index, names)))
    small = max(image.shape[:2]) < 160
    grown = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST) if small else image
    told = ''.join(f'<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>' for a, b in lines)
    return [_panel(grown, [], f'{lines[0][0]}: {lines[0][1]}' if lines else ''), f'<dl>{told}</dl>']


def _answer(one: ComparedRun, index: int, names: Sequence[str]) -> str:
    scores, labels = one.found.scores, one.found.labels
    if scores is None or labels is None:
        return 'not known'
    best = int(scores[index].argmax())
    told = f'{names[best]} ({scores[index, best]:.2f})'
    if best != labels[index]:
        told += f', true class {scores[index, labels[index]]:.2f}'
    return told
