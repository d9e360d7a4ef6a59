"""Calibration of classifiers, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmkd_plugin.diagnosis.compare.calibration import calibration


def test_bins_of_equal_width_weigh_by_their_images():
    top = np.array([0.55, 0.58, 0.95, 0.95, 0.95, 1.0])
    scores = np.stack([top, 1 - top], 1)
    labels = np.array([0, 1, 0, 0, 1, 0])
    found = calibration(scores, labels, bins=10)
    # (0.5, 0.6]: sure by 0.565, right in 1 of 2; (0.9, 1]: sure by 0.9625, right in 3 of 4.
    assert found['ece'] == pytest.approx((2 * 0.065 + 4 * 0.2125) / 6)
    assert [b['images'] for b in found['bins']] == [0, 0, 0, 0, 0, 2, 0, 0, 0, 4]
    assert found['bins'][5]['accuracy'] == 0.5 and found['bins'][0]['confidence'] is None
    assert (found['bins'][5]['low'], found['bins'][5]['high']) == pytest.approx((0.5, 0.6))


def test_a_classifier_that_is_as_often_right_as_it_says():
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1, 20000)
    scores = np.stack([top, 1 - top], 1)
    labels = (random.random(20000) > top).astype(int)
    assert calibration(scores, labels)['ece'] < 0.02
    assert calibration(scores, 1 - labels)['ece'] > 0.3
