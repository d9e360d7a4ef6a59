"""What a model says of labelled images, and the tests on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement, InstanceData

from mmkd_plugin.diagnosis.class_checks import exchanged
from mmkd_plugin.diagnosis.findings import Report
from mmkd_plugin.diagnosis.paired import difference
from mmkd_plugin.diagnosis.readings import (
    NOTHING,
    BoxReading,
    ImageReading,
    MapReading,
    Objects,
    all_objects,
    image_scores,
    read_outputs,
)


def boxes(found, scores, labels, true, true_labels) -> BoxReading:
    arrays = [np.array(x, dtype=float) for x in (found, scores)]
    places = np.array(true, dtype=float)
    return BoxReading(
        arrays[0].reshape(-1, 4), arrays[1], np.array(labels), places, np.array(true_labels)
    )


def test_boxes_are_judged_by_the_surest_one_on_an_object():
    reading = boxes(
        [[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]],
        [0.5, 0.9, 0.8],
        [1, 2, 0],
        [[0, 0, 10, 10], [30, 30, 40, 40]],
        [1, 0],
    )
    objects = reading.objects()
    assert objects.said.tolist() == [2, NOTHING]
    assert objects.score == pytest.approx([0.5, 0])  # of the true class, times an IoU of 1
    assert objects.found == pytest.approx([0.9 * 0.8, 0])  # of any
    assert objects.iou[0] == pytest.approx(0.8) and np.isnan(objects.iou[1])
    named = reading.renamed(np.array([0, 2, 1]))
    assert named.objects().said.tolist() == [1, NOTHING]
    assert boxes([], [], [], [[0, 0, 1, 1]], [0]).objects().said.tolist() == [NOTHING]


def test_a_head_that_finds_masks_alone_is_read_by_the_boxes_around_them():
    """As of SOLO, whose boxes all have size 0; a healthy one would look as if it found nothing."""
    masks = torch.zeros(3, 20, 20, dtype=torch.bool)
    masks[0, 2:6, 4:10] = masks[2, 10:20, 10:20] = True  # the second is empty
    found = InstanceData(
        bboxes=torch.zeros(3, 4), masks=masks, scores=torch.ones(3), labels=torch.tensor([1, 0, 0])
    )
    truth = InstanceData(
        bboxes=torch.tensor([[4.0, 2, 10, 6], [10, 10, 20, 20]]), labels=torch.tensor([1, 0])
    )
    output, sample = BaseDataElement(), BaseDataElement(metainfo=dict(scale_factor=(1.0, 1.0)))
    output.pred_instances, sample.gt_instances = found, truth
    (reading,) = read_outputs([output], [sample])
    assert reading.objects().said.tolist() == [1, 0] and reading.objects().iou.tolist() == [1, 1]


def test_maps_have_an_object_for_each_class_of_the_truth():
    truth = np.array([[0, 0, 1, 255]])
    objects = MapReading(np.array([[0, 1, 1, 1]]), truth).objects()
    assert objects.label.tolist() == [0, 1] and objects.score == pytest.approx([0.5, 1])
    assert objects.iou == pytest.approx([1 / 2, 1 / 2]), 'what is ignored does not count'


def test_images_without_objects_have_no_score():
    empty = boxes([[0, 0, 1, 1]], [0.9], [0], np.zeros((0, 4)), [])
    scores = image_scores([empty, ImageReading(np.array([0.2, 0.8]), 1)])
    assert np.isnan(scores[0]) and scores[1] == pytest.approx(0.8)
    assert len(all_objects([empty]).label) == 0


def objects_of(counts: np.ndarray) -> Objects:
    pairs = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) for _ in range(n)]
    label, said = (np.array(column) for column in zip(*pairs))
    ones = np.ones(len(label))
    return Objects(label, said, ones, ones, ones)


@pytest.mark.parametrize(
    'counts, moved',
    [
        ([[20, 0, 0], [0, 0, 20], [0, 20, 0]], {1: 2, 2: 1}),
        ([[0, 20, 0], [0, 0, 20], [20, 0, 0]], {0: 1, 1: 2, 2: 0}),
        ([[20, 0, 0], [0, 5, 15], [0, 2, 18]], {}),  # a mistake: 2 is called 2 as well
        ([[0, 0, 20], [0, 0, 20], [0, 0, 20]], {}),  # it always says the same
        ([[7, 6, 7], [8, 6, 6], [6, 8, 6]], {}),  # it guesses
        ([[1, 0, 0], [0, 0, 1], [0, 1, 0]], {}),  # too few objects to tell
    ],
    ids=['two', 'rotated', 'mistake', 'constant', 'guesses', 'few'],
)
def test_an_exchange_of_classes_is_no_mistake(counts, moved):
    assert exchanged(objects_of(np.array(counts))) == moved


def test_differences_are_as_sure_as_signs_allow():
    assert difference(np.ones(3)).p == pytest.approx(1 / 8, abs=0.02)
    assert difference(np.ones(20)).p < 0.001 and difference(-np.ones(20)).p == 1
    found = difference(np.array([1.0, np.nan, 3.0]))
    assert found.count == 2 and found.mean == 2
    assert difference(np.array([])).p == 1


def test_chance_is_seldom_taken_for_a_difference():
    rng = np.random.default_rng(0)
    surprises = sum(difference(rng.normal(size=30), seed=i).p < 0.05 for i in range(200))
    assert 2 <= surprises <= 20


def test_a_report_speaks_plainly():
    report = Report(teacher=dict(value=float('nan')))
    report.add('overflow', 'kd', dict(loss=float('inf'), sizes=(1, 2)), 'advice')
    report.add('overflow', 'kd', {}, 'said before')
    report.add('nothing-to-learn', 'kd', {}, 'advice')
    content = report.as_dict()
    assert content['findings'][0]['evidence'] == dict(loss=None, sizes=[1, 2])
    assert len(content['findings']) == 2 and content['teacher'] == dict(metrics=dict(value=None))
    assert report.status == 1
