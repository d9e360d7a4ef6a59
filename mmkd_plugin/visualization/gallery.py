"""The pictures of the demo's report: detections drawn as vectors over the images."""

from __future__ import annotations

import base64
import html

from .charts import ROLES

HIT_IOU = 0.5


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


def _panel(entry: dict, marks: list[tuple[list[float], str, str]], caption: str) -> str:
    width, height = entry['size']
    code = base64.b64encode(entry['jpeg']).decode('ascii')
    parts = [f'<image href="data:image/jpeg;base64,{code}" width="{width}" height="{height}"/>']
    for (x1, y1, x2, y2), text, kind in marks:
        parts.append(f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
                     f'height="{y2 - y1:.1f}"/>')  # fmt: skip
        if text:
            label_y = y1 - 1.5 if y1 > 9 else min(y2 + 7.5, height - 1)
            place = f'x="{x1:.1f}" y="{label_y:.1f}"'
            parts.append(f'<text class="{kind}" {place}>{html.escape(text)}</text>')
    said = html.escape(caption)
    svg = (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )
    return f'<figure>{svg}<figcaption>{said}</figcaption></figure>'


def gallery_rows(results: dict) -> str:
    """Truth, student and distilled student side by side: right, wrong and missed boxes differ."""
    names = results.get('classes') or [str(digit) for digit in range(10)]
    rows = []
    for entry in results['gallery']:
        truth = [(item['box'], names[item['label']], 'truth') for item in entry['truth']]
        panels = [_panel(entry, truth, f'Truth: {len(truth)} digits')]
        for role in ('student', 'distilled'):
            right, hit = judge(entry[role], entry['truth'])
            marks = [(item['box'], '', 'missed')
                     for item, found in zip(entry['truth'], hit) if not found]  # fmt: skip
            for item, good in zip(entry[role], right):
                text = f'{names[item["label"]]} {item["score"]:.2f}'
                marks.append((item['box'], text, 'right' if good else 'wrong'))
            caption = f'{ROLES[role]}: {sum(hit)} of {len(hit)} found, {right.count(False)} wrong'
            panels.append(_panel(entry, marks, caption))
        rows.append(f'<div class="trio">{"".join(panels)}</div>')
    return ''.join(rows)
