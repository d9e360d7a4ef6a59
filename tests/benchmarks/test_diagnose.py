"""The diagnosis of a distilled run: what it counts, and one run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from benchmarks import diagnose
from benchmarks.head_methods import PAIRS
from mmkd_plugin.views.predictions import Level, Predictions


def predictions(logits: list, **extras) -> Predictions:
    level = Level(torch.tensor(logits)[None, :, None], **extras)
    return Predictions('bbox_head', 'roi', [level], 'softmax', num_classes=2, background=True)


def test_teacher_is_judged_on_counted_positives_only():
    labels = torch.tensor([0, 1, 0, 2, 1])[None, :, None]
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])[None, :, None]  # the third is ignored
    sure, unsure = 9.0, 0.0
    teacher = predictions(
        [
            [sure, 0, 0],  # right
            [0, 0, sure],  # calls a digit background
            [0, sure, 0],  # wrong, but ignored
            [0, 0, sure],  # background it is
            [0, sure, 0],  # right
        ]
    )
    student = predictions(
        [[unsure, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]],
        labels=labels,
        label_weights=weights,
    )
    found = diagnose.describe(student, teacher)
    assert found['positives'] == 3
    assert found['teacher'] == 2 and found['student'] == 1
    p = torch.tensor([[sure, 0, 0]]).softmax(-1)[0]
    assert found['teacher_p'] == pytest.approx(float(2 * p[0] + p[1]))
    # Its attention: the best foreground class, on three positives and one counted background.
    assert found['on'] == pytest.approx(float(2 * p[0] + p[1]))
    assert found['all'] == pytest.approx(float(2 * p[0] + 2 * p[1]))


def test_a_head_without_labels_is_not_judged():
    both = predictions([[1.0, 0.0, 0.0]])
    assert diagnose.describe(both, both) == {}


@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path: Path, digits_root: Path, capsys):
    pair = PAIRS['digits']['faster']
    init_default_scope('mmdet')
    files = {}
    for role in ('teacher', 'student'):
        model = MODELS.build(Config.fromfile(getattr(pair, role)).model)
        files[role] = tmp_path / f'{role}.pth'
        torch.save(dict(state_dict=model.state_dict()), files[role])
    digits = dict(image_size=128, train=24, val=12, seed=0)
    options = {}
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = str(digits_root)
        options[f'{split}_dataloader.dataset.digits'] = digits
    run = dict(
        dataset='digits', config=pair.student, method='gdd_channel+kd', weight=None, seed=0,
        terms=pair.terms('gdd_channel+kd'), split='val', epochs=1, options=options,
        teacher=dict(config=pair.teacher, checkpoint=str(files['teacher'])),
    )  # fmt: skip
    (tmp_path / 'run.json').write_text(json.dumps(run))
    arguments = [str(tmp_path), '--batches', '2', '--checkpoint', str(files['student'])]
    assert diagnose.main([*arguments, '--out', str(tmp_path / 'out')]) == 0
    assert '| gdd_channel+kd, seed 0 | kd |' in capsys.readouterr().out
    (terms,) = json.loads((tmp_path / 'out.json').read_text()).values()
    assert terms['gdd_channel']['gradient_ratio'] > 0
    kd = terms['kd']
    assert -1 <= kd['cosine'] <= 1 and kd['gradient_ratio'] > 0
    assert kd['positives_per_image'] >= 3  # every digit is among its own proposals
    assert 0 <= kd['teacher_accuracy'] <= 1 and 0 < kd['scores_on_positives'] < 1
