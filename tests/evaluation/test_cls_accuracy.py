"""ClsAccuracy: batches, single images, ties of sampler padding between ranks, bad predictions."""

from __future__ import annotations

import pytest
import torch

from mmkd_plugin.evaluation import ClsAccuracy
from mmkd_plugin.registry import METRICS

SCORE = torch.tensor([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.5, 0.1, 0.4]])
LABEL = torch.tensor([1, 1, 0, 2])


def evaluate(metric: ClsAccuracy, *samples: dict, size: int = 4) -> dict:
    for sample in samples:
        metric.process(None, [sample])
    return metric.evaluate(size)


def test_top1_and_top2_by_hand():
    metric = ClsAccuracy(topk=(1, 2))
    result = evaluate(metric, dict(pred_score=SCORE, gt_label=LABEL))
    assert result == {'accuracy/top1': 25.0, 'accuracy/top2': 75.0}
    assert metric.results == []  # ready for the next evaluation


def test_batches_and_single_images_agree():
    whole = evaluate(ClsAccuracy((1, 2)), dict(pred_score=SCORE, gt_label=LABEL))
    parts = [dict(pred_score=SCORE[:3], gt_label=LABEL[:3]),
             dict(pred_score=SCORE[3:], gt_label=LABEL[3:])]  # fmt: skip
    single = [dict(pred_score=s, gt_label=g) for s, g in zip(SCORE, LABEL)]
    # as in MMPreTrain, where labels have one element
    other = [dict(pred_score=s, gt_label=g[None]) for s, g in zip(SCORE, LABEL)]
    for samples in (parts, single, other):
        assert evaluate(ClsAccuracy((1, 2)), *samples) == whole


def test_labels_alone_serve_top1():
    sample = dict(pred_label=SCORE.argmax(1), gt_label=LABEL)
    assert evaluate(ClsAccuracy(1), sample) == {'accuracy/top1': 25.0}


def test_only_one_transfer(monkeypatch):
    fetched = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, 'cpu', lambda self: fetched.append(1) or original(self))
    batches = [dict(pred_score=SCORE, gt_label=LABEL)] * 5
    evaluate(ClsAccuracy((1, 2)), *batches, size=20)
    assert len(fetched) == 1


@pytest.mark.parametrize('size', [5, 6])
def test_padding_of_a_distributed_sampler_is_not_counted(monkeypatch, size):
    """Two ranks with 3 images each; of 5 images, the sampler repeats the first on rank 1."""
    score = torch.eye(6)
    label = torch.tensor([9, 1, 2, 3, 4, 9])  # image 0 and 5 are wrong
    parts = []
    for rank in (0, 1):
        chosen = [index % size for index in range(6)][rank::2]
        metric = ClsAccuracy(1)
        metric.process(None, [dict(pred_score=score[chosen[:2]], gt_label=label[chosen[:2]])])
        metric.process(None, [dict(pred_score=score[chosen[2:]], gt_label=label[chosen[2:]])])
        parts.append(torch.cat(metric.results).tolist())

    def collect(results, size, device, tmpdir=None):
        from itertools import chain

        return list(chain.from_iterable(zip(*[[tuple(r) for r in p] for p in parts])))[:size]

    monkeypatch.setattr('mmengine.evaluator.metric.collect_results', collect)
    result = metric.evaluate(size)
    wrong = {5: 1, 6: 2}[size]
    assert result['accuracy/top1'] == pytest.approx(100 * (size - wrong) / size)


def test_a_k_beyond_the_classes_is_always_right(caplog):
    result = evaluate(ClsAccuracy((1, 5)), dict(pred_score=SCORE, gt_label=LABEL))
    assert result == {'accuracy/top1': 25.0, 'accuracy/top5': 100.0}


def test_not_a_number_is_not_right():
    score = torch.full((4, 3), float('nan'))
    assert evaluate(ClsAccuracy(1), dict(pred_score=score, gt_label=LABEL))['accuracy/top1'] < 100


@pytest.mark.parametrize('topk', [0, (), (1, 0), 1.5 and (1.5,), (True,)])
def test_bad_topk(topk):
    with pytest.raises(ValueError, match='topk must be whole numbers from 1'):
        ClsAccuracy(topk)


def test_incomplete_predictions():
    with pytest.raises(ValueError, match="no 'gt_label'"):
        ClsAccuracy().process(None, [dict(pred_score=SCORE)])
    with pytest.raises(ValueError, match="needs 'pred_score'"):
        ClsAccuracy().process(None, [dict(pred_label=LABEL, gt_label=LABEL)])


def test_it_is_registered():
    assert METRICS.build(dict(type='ClsAccuracy', topk=1)).topk == (1,)
