"""The diagnosis of a distilled run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from benchmarks import diagnose
from benchmarks.head_methods import PAIRS


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
