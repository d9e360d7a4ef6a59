"""Labels of boxes in the report do not lie on one another."""

from __future__ import annotations

import itertools
import random
import re

import numpy as np

from mmkd_plugin.report.gallery import _panel
from mmkd_plugin.report.labels import place_labels


def overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_no_two_labels_overlap_and_all_lie_in_the_image():
    draw = random.Random(0)
    for count in (1, 5, 40):
        boxes = []
        for _ in range(count):
            x, y = draw.uniform(0, 80), draw.uniform(0, 80)
            boxes.append((x, y, x + draw.uniform(5, 40), y + draw.uniform(5, 40)))
        places = place_labels(boxes, [18.0] * count, 6.0, (100, 100))
        placed = [place for place in places if place is not None]
        assert not any(overlap(a, b) for a, b in itertools.combinations(placed, 2))
        assert all(0 <= p[0] and 0 <= p[1] and p[2] <= 100 and p[3] <= 100 for p in placed)
        assert len(placed) >= min(count, 15)


def test_a_label_without_room_is_left_to_hovering():
    places = place_labels([(0, 0, 9, 9)] * 2, [200.0, 5.0], 4.0, (100, 100))
    assert places[0] is None and places[1] is not None


def test_small_boxes_lie_above_large_ones():
    marks = [([10, 10, 20, 20], 'a', 'a 0.9', 'right'), ([0, 0, 90, 90], 'b', 'b 0.8', 'wrong')]
    page = _panel(np.zeros((100, 100, 3), np.uint8), marks, 'x < y')
    assert re.findall(r'<title>(.*?)</title>', page) == ['b 0.8', 'a 0.9']
    assert 'x &lt; y' in page
