"""Logit terms on detection heads through the Runner: EMA, resume, and terms that do not act."""

from __future__ import annotations

import json

import pytest
import torch
from detectors import FAMILIES, WIDTH, model_config, run_config
from mmengine.runner import Runner

IPWD = dict(type='IPWDLoss', temperature=1.0, normalize='batch_mean', clip_max=5.0)
TERMS = {
    'GFL': [
        dict(loss=dict(type='KDLoss', temperature=1.0), student='cls_logits', warmup=3),
        dict(loss=IPWD, student='cls_logits'),
        dict(loss=dict(type='CKDLoss'), student='cls_logits', select=dict(by='random', k=16)),
    ],
    'Faster R-CNN': [
        dict(loss=dict(type='DKDLoss', temperature=1.0, beta=0.25), student='cls_logits'),
        dict(loss=IPWD, student='cls_logits'),
        dict(loss=dict(type='CKDLoss'), student='cls_logits', begin=1),
    ],
}


def config(family, root, work_dir, iterations, terms, **overrides):
    torch.manual_seed(0)
    teacher = dict(model=model_config(family, 2 * WIDTH), default_scope='mmdet')
    hooks = []
    if terms:
        hooks = [
            dict(
                type='mmkd_plugin.DistillHook',
                teacher=dict(config=teacher, allow_random=True),
                terms=terms,
            ),
            # The samplers of RoI heads draw from the global state, which MMEngine does not save.
            dict(type='mmkd_plugin.StepSeedHook'),
        ]
    made = run_config(
        model_config(family),
        root / 'annotations' / 'train.json',
        root / 'train',
        work_dir,
        FAMILIES[family].masks,
        custom_imports=dict(imports=['mmkd_plugin'], allow_failed_imports=False),
        custom_hooks=[*hooks, *overrides.pop('more_hooks', [])],
        experiment_name=f'{family}_{work_dir.name}_{iterations}'.replace(' ', ''),
        **overrides,
    )
    made.train_cfg.max_iters = iterations
    return made


def run(made):
    runner = Runner.from_cfg(made)
    runner.train()
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def losses(folder):
    steps = {}
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in file.open():
            entry = json.loads(line)
            steps[entry['step']] = {k: v for k, v in entry.items() if 'loss' in k or 'rows' in k}
    return steps


@pytest.mark.parametrize('family', TERMS)
def test_a_resumed_run_continues_exactly(family, digits_root, tmp_path):
    terms = TERMS[family]
    whole = run(config(family, digits_root, tmp_path / 'whole', 4, terms))
    run(config(family, digits_root, tmp_path / 'parts', 2, terms))
    parts = run(config(family, digits_root, tmp_path / 'parts', 4, terms, resume=True))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    seen = losses(tmp_path / 'whole')
    assert seen == losses(tmp_path / 'parts') and len(seen) == 4
    assert all(value > 0 for name, value in seen[4].items() if name.startswith('loss_ckd'))


@pytest.mark.parametrize('family', TERMS)
def test_terms_that_do_not_act_leave_training_as_it_was(family, digits_root, tmp_path):
    def seeded(work_dir, terms):
        hook = [] if terms else [dict(type='mmkd_plugin.StepSeedHook')]
        return config(family, digits_root, tmp_path / work_dir, 2, terms, more_hooks=hook)

    plain = run(seeded('plain', []))
    idle = [dict(term, begin=100) for term in TERMS[family]]
    idle[0] = dict(idle[0], begin=0, weight=0.0)
    idle[0].pop('warmup', None)
    distilled = run(seeded('idle', idle))
    assert plain.keys() == distilled.keys()
    assert all(torch.equal(plain[key], distilled[key]) for key in plain)


@pytest.mark.parametrize('family', TERMS)
def test_an_ema_copy_is_plain(family, digits_root, tmp_path):
    ema = dict(type='EMAHook', momentum=0.5, update_buffers=True)
    made = config(family, digits_root, tmp_path, 2, TERMS[family], more_hooks=[ema])
    run(made)
    saved = torch.load(tmp_path / 'iter_2.pth', map_location='cpu', weights_only=False)
    own = set(run(config(family, digits_root, tmp_path / 'plain', 2, [])))
    assert set(saved['state_dict']) == own
    averaged = {k.removeprefix('module.'): v for k, v in saved['ema_state_dict'].items()}
    assert set(averaged) - {'steps'} == own
    assert averaged['steps'] == 2
    moved = [k for k in own if not torch.equal(averaged[k], saved['state_dict'][k])]
    assert len(moved) > len(own) / 3, 'an average of the weights, not a copy'
