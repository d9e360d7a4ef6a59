"""Pictures of what a term compares, as RGB arrays: maps, places of an image, classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_HEIGHT, _DPI = 2.6, 100  # of a panel, in inches
_TOP = 3  # classes of each side


class PlacedBoxes(NamedTuple):
    """Boxes with a number each.

    Attributes:
        corners: (K, 4) in pixels.
        values: (K,) from 0 to 1.
    """

    corners: np.ndarray
    values: np.ndarray


def map_picture(image: np.ndarray, student: np.ndarray, teacher: np.ndarray, title: str) -> Any:
    """The image, the student's map, the teacher's, and the student's minus the teacher's.

    Args:
        image: (H, W, 3), uint8.
        student: (h, w), on one scale with
        teacher: (h, w).
        title: above all of them.

    Returns:
        RGB, uint8.
    """
    figure, panels = _panels(image, 4, title)
    panels[0].imshow(image)
    top = float(np.percentile(np.concatenate([student.ravel(), teacher.ravel()]), 99.5)) or 1.0
    for axes, name, values in ((panels[1], 'student', student), (panels[2], 'teacher', teacher)):
        shown = axes.imshow(values, cmap='viridis', vmin=0, vmax=top)
        axes.set_title(name, fontsize=9)
    figure.colorbar(shown, ax=panels[2], shrink=0.8)
    difference = student - teacher
    limit = float(np.percentile(np.abs(difference), 99.5)) or 1.0
    shown = panels[3].imshow(difference, cmap='coolwarm', vmin=-limit, vmax=limit)
    panels[3].set_title('student - teacher', fontsize=9)
    figure.colorbar(shown, ax=panels[3], shrink=0.8)
    return _array(figure)


def place_picture(image: np.ndarray, places: np.ndarray | PlacedBoxes | None, title: str) -> Any:
    """The image, and on it where student and teacher disagree.

    Args:
        image: (H, W, 3), uint8.
        places: numbers from 0 to 1, (H, W) or for boxes; None for rows that have no place.
        title: above both.

    Returns:
        RGB, uint8.
    """
    figure, panels = _panels(image, 1 if places is None else 2, title)
    panels[0].imshow(image)
    if places is None:
        return _array(figure)
    panels[1].imshow(image.mean(2), cmap='gray', vmin=0, vmax=255)
    if isinstance(places, PlacedBoxes):
        shown = _draw_boxes(panels[1], places)
    else:
        shown = panels[1].imshow(places, cmap='inferno', vmin=0, vmax=1, alpha=0.65)
    figure.colorbar(shown, ax=panels[1], shrink=0.8)
    return _array(figure)


def class_picture(
    image: np.ndarray, student: np.ndarray, teacher: np.ndarray, names: Sequence[str], title: str
) -> Any:
    """The image, and beside it the probabilities of the best classes of both.

    Args:
        image: (H, W, 3), uint8.
        student: probabilities (C,).
        teacher: the same.
        names: of the classes.
        title: above both.

    Returns:
        RGB, uint8.
    """
    figure, panels = _panels(image, 2, title)
    panels[0].imshow(image)
    best = [index for p in (teacher, student) for index in np.argsort(-p, kind='stable')[:_TOP]]
    chosen = list(dict.fromkeys(best))[::-1]
    axes, rows = panels[1], np.arange(len(chosen))
    axes.axis('on')
    axes.barh(rows + 0.2, teacher[chosen], 0.4, label='teacher', color='#64748b')
    axes.barh(rows - 0.2, student[chosen], 0.4, label='student', color='#2563eb')
    axes.set_yticks(rows, [names[index][:20] for index in chosen], fontsize=7)
    axes.set_xlim(0, 1)
    axes.tick_params(axis='x', labelsize=7)
    axes.legend(frameon=False, fontsize=7, loc='lower right')
    return _array(figure)


def _draw_boxes(axes: Any, places: PlacedBoxes) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.patches import Rectangle

    colors = ScalarMappable(cmap='inferno')
    colors.set_clim(0, 1)
    rows = zip(places.corners, places.values, strict=True)
    for (left, top, right, bottom), value in sorted(rows, key=lambda row: row[1]):  # largest on top
        color = colors.to_rgba(value)
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, color=color, lw=1.5)
        )
    return colors


def _panels(image: np.ndarray, count: int, title: str) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    width = _HEIGHT * min(max(image.shape[1] / image.shape[0], 0.6), 2.0) + 0.5
    figure = Figure(figsize=(max(width * count, 4), _HEIGHT + 0.5), dpi=_DPI, layout='constrained')
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(1, count, squeeze=False)[0]
    for axes in panels:
        axes.axis('off')
    return figure, panels


def _array(figure: Any) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
