"""Names under which terms are logged: none may be the student's, whenever the term acts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from toys import TERM, hook_config, runner_config, toy_batch, toy_classifier, toy_model, train

import mmkd_plugin
from mmkd_plugin import distiller as distiller_module
from mmkd_plugin.teacher import build_model

IPWD = dict(loss=dict(type='IPWDLoss'), student='cls_logits')


def step(student, iteration=0):
    student.distiller.set_progress(iteration)
    inputs, data_samples = toy_batch()
    for sample in data_samples:
        sample.gt_label = sample.label
    return student.train()(inputs, data_samples, mode='loss')


class Watch(Hook):
    """Keeps the weights as they were when the run began."""

    def before_train(self, runner):
        self.model = runner.model
        self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}


def test_a_taken_name_is_refused_before_the_first_update(tmp_path):
    watch = Watch()
    config = runner_config(tmp_path, hook_config(dict(TERM, name='cls', begin=3)))
    with pytest.raises(ValueError, match="entry 'loss_cls'.*term 'cls' another name"):
        train(config, watch)
    now = watch.model.state_dict()
    names = [name for name, _ in watch.model.named_parameters() if 'distiller' not in name]
    assert names and all(torch.equal(now[name], watch.weights[name]) for name in names)


@pytest.mark.parametrize('key', ['loss_ipwd_cls', 'ipwd_weight_max', 'loss_ipwd'])
@pytest.mark.parametrize('world', [1, 2])
def test_so_are_those_of_auxiliary_losses_and_diagnostics(monkeypatch, key, world):
    monkeypatch.setattr(distiller_module, 'get_world_size', lambda: world)
    student = toy_classifier(0)
    plain = student.forward
    student.forward = lambda *args, **kwargs: dict(
        plain(*args, **kwargs), **{key: torch.tensor(1.0)}
    )
    mmkd_plugin.attach(student, toy_classifier(1), [dict(IPWD, begin=5)], probe_size=(16, 16))
    with pytest.raises(ValueError, match=f"entry '{key}'.*term 'ipwd' another name"):
        step(student)


def test_two_terms_cannot_share_an_entry():
    terms = [IPWD, dict(IPWD, loss=dict(type='KDLoss'), name='ipwd_cls', begin=9)]
    with pytest.raises(ValueError, match="'ipwd' and 'ipwd_cls' would both be .*'loss_ipwd_cls'"):
        mmkd_plugin.attach(toy_classifier(0), toy_classifier(1), terms, probe_size=(16, 16))


def test_every_entry_of_a_loss_is_known_before_it_acts():
    student = toy_classifier(0)
    mmkd_plugin.attach(student, toy_classifier(1), [dict(IPWD, begin=1)], probe_size=(16, 16))
    known = list(student.distiller.keys)
    own = step(student)
    entries = step(student, 1)
    assert set(entries) - set(own) == set(known) == set(student.distiller.keys)
    assert student.distiller.loss_keys == ['loss_ipwd', 'loss_ipwd_cls']


def test_idle_connectors_of_several_ranks_get_a_gradient_without_an_entry(monkeypatch):
    student = toy_model(0)
    mmkd_plugin.attach(student, toy_model(1, width=8), [dict(TERM, end=1)], probe_size=(16, 16))
    alone = step(student, 1)
    monkeypatch.setattr(distiller_module, 'get_world_size', lambda: 2)
    losses = step(student, 1)
    assert losses.keys() == alone.keys()
    for key, value in losses.items():
        mine, theirs = (list(x) if isinstance(x, list) else [x] for x in (value, alone[key]))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs))
    sum(losses['loss_cls']).backward()
    gradients = [p.grad for p in student.distiller.parameters()]
    assert gradients and all(g is not None and not g.any() for g in gradients)


def test_the_example_in_the_documents_can_be_trained():
    pytest.importorskip('mmdet')
    from detectors import model_config
    from mmdet.testing import demo_mm_inputs

    text = (Path(__file__).parents[1] / 'docs/usage.md').read_text()
    block = re.search(r'## Terms.*?```python\n(.*?)```', text, re.S).group(1)
    terms = eval(f'dict({block})')['terms']
    models = [dict(model=model_config('GFL', width), default_scope='mmdet') for width in (16, 32)]
    student, teacher = (build_model(Config(config)) for config in models)
    mmkd_plugin.attach(student, teacher, terms, probe_size=(64, 64))
    batch = demo_mm_inputs(2, image_shapes=[(3, 96, 96)] * 2, num_items=[1, 1], num_classes=10)
    data = student.data_preprocessor(batch, True)
    for epoch, acting in ((0, 1), (4, 2)):
        student.distiller.set_progress(epoch, epoch)
        losses = student.train()(**data, mode='loss')
        assert len([key for key in losses if key in student.distiller.keys]) == acting
