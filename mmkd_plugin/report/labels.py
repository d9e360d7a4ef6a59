"""Places for the labels of boxes, so that none lies on another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Box = tuple[float, float, float, float]  # left, top, right, bottom


def place_labels(
    boxes: Sequence[Box], widths: Sequence[float], height: float, size: tuple[int, int]
) -> list[Box | None]:
    """A place for the label of each box, the first ones first.

    Args:
        boxes: in pixels.
        widths: of the labels.
        height: of the labels.
        size: width and height of the image, in which all labels lie.

    Returns:
        For each box where its label lies; None where there is no room for it.
    """
    taken: list[Box] = []
    places: list[Box | None] = []
    for box, width in zip(boxes, widths):
        place = None
        for left, top in _candidates(box, width, height):
            left = min(max(left, 0.0), size[0] - width)
            top = min(max(top, 0.0), size[1] - height)
            wanted = (left, top, left + width, top + height)
            if left >= 0 and top >= 0 and not any(_overlap(wanted, other) for other in taken):
                place = wanted
                taken.append(wanted)
                break
        places.append(place)
    return places


def _candidates(box: Box, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Above, below, inside and beside the box, near places first."""
    left, top, right, bottom = box
    yield from ((left, top - height), (left, bottom), (left, top), (right - width, top - height))
    yield from ((right - width, bottom), (right, top), (left - width, top))
    for step in range(2, 5):
        yield from ((left, top - step * height), (left, bottom + (step - 1) * height))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
