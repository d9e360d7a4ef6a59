"""What kinds of errors cost, beside the package tidecv."""

from __future__ import annotations

import numpy as np
import pytest
from made_up_objects import made_up, objects

from mmkd_plugin.diagnosis.compare.objects import Objects
from mmkd_plugin.diagnosis.compare.tide import KINDS, error_costs

# What tidecv 1.0.1 gives for the sets that made_up() draws with these seeds.
TIDECV = {
    0: [9.919915068, 16.706538099, 0.834149349, 1.015667501, 6.840750009, 0.0],
    1: [28.12515867, 15.173267327, 0.25990099, 0.240452617, 2.376237624, 6.155115512],
    2: [5.379356617, 10.847636275, 1.855362047, 1.23164789, 6.608276212, 7.046954695],
}


def by_tidecv(truth: Objects, found: Objects, images: int) -> list[float]:
    tidecv = pytest.importorskip('tidecv')
    sides = tidecv.Data('truth'), tidecv.Data('found')
    for image in range(images):
        sides[0].add_image(image, str(image))
    for k in range(len(truth)):
        add = sides[0].add_ignore_region if truth.crowd[k] else sides[0].add_ground_truth
        add(int(truth.image[k]), int(truth.label[k]), truth.box[k].tolist())
    for k in range(len(found)):
        sides[1].add_detection(
            int(found.image[k]), int(found.label[k]), float(found.score[k]), found.box[k].tolist()
        )
    tide = tidecv.TIDE()
    tide.evaluate(*sides, mode=tidecv.TIDE.BOX)
    errors = tide.get_main_errors()['found']
    return [errors[name] for name in ('Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss')]


@pytest.mark.parametrize('seed', TIDECV)
def test_costs_are_those_that_tidecv_gave(seed):
    costs = error_costs(*made_up(seed), images=12)
    assert list(costs) == list(KINDS)
    assert list(costs.values()) == pytest.approx(TIDECV[seed], abs=1e-6)


def test_costs_are_those_of_tidecv():
    for seed in range(20, 40):
        costs = error_costs(*made_up(seed), images=12)
        assert list(costs.values()) == pytest.approx(by_tidecv(*made_up(seed), 12), abs=1e-6)


@pytest.mark.parametrize(
    'found, kind',
    [
        ([[0, 1, 0, 0, 20, 20, 0.9, 0]], 'classification'),
        ([[0, 0, 8, 0, 20, 20, 0.9, 0]], 'localization'),
        ([[0, 1, 8, 0, 20, 20, 0.9, 0]], 'both'),
        ([[0, 0, 0, 0, 20, 20, 0.9, 0], [0, 0, 1, 0, 20, 20, 0.95, 0]], 'duplicate'),
        ([[0, 0, 60, 60, 9, 9, 0.9, 0], [0, 0, 0, 0, 20, 20, 0.5, 0]], 'background'),
        ([], 'missed'),
    ],
)
def test_each_kind_is_told_from_the_others(found, kind):
    truth = objects([[0, 0, 0, 0, 20, 20, 1, 0], [1, 0, 0, 0, 20, 20, 1, 0],
                     [1, 1, 40, 40, 20, 20, 1, 0]])  # fmt: skip
    right = [[1, 0, 0, 0, 20, 20, 0.4, 0], [1, 1, 40, 40, 20, 20, 0.3, 0]]
    costs = error_costs(truth, objects([*found, *right]), images=2)
    assert costs[kind] > 0
    assert {name for name, cost in costs.items() if cost > 0} <= {kind, 'missed'}


def test_what_lies_in_a_crowd_costs_nothing():
    truth = objects([[0, 0, 0, 0, 50, 50, 1, 1], [0, 0, 60, 60, 20, 20, 1, 0]])
    found = objects([[0, 0, 5, 5, 10, 10, 0.9, 0], [0, 0, 60, 60, 20, 20, 0.5, 0]])
    assert np.allclose(list(error_costs(truth, found, 1).values()), 0)
