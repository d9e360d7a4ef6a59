"""teacher='previous_epoch': the student of the epoch before teaches the one of now."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.hooks import Hook
from toys import runner_config, toy_classifier, train

from mmkd_plugin.teacher.self_teacher import SelfTeacher

EPOCHS = 4
KD = dict(
    loss=dict(type='KDLoss', temperature=1.0),
    student='bbox_head.cls',
    weight=0.8,
    begin=1,
    warmup=EPOCHS - 1,
    by_epoch=True,
    name='kd',
)


class Watch(Hook):
    """Weights of student and teacher at the start of each epoch, losses of each step."""

    def __init__(self):
        self.student, self.teacher, self.losses = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            distiller = runner.model.distiller
            self.student.append(copy.deepcopy(runner.model.state_dict()))
            self.teacher.append(copy.deepcopy(distiller.teacher.model.state_dict()))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({key: torch.as_tensor(value).item() for key, value in outputs.items()})


def config(folder, hook, epochs=EPOCHS, **changes):
    hook = dict(type='mmkd_plugin.DistillHook', probe_size=(16, 16), **hook)
    cfg = runner_config(
        folder,
        hook,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        param_scheduler=None,
        log_processor=dict(by_epoch=True),
        **changes,
    )
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    return cfg


CLASSIFIER = dict(model=dict(type='ToyClassifier'))
SELF = dict(teacher='previous_epoch', terms=[KD], task_weight='complement')


def test_the_teacher_is_the_student_at_the_end_of_the_previous_epoch(tmp_path):
    watch = Watch()
    train(config(tmp_path, SELF), watch)
    assert len(watch.teacher) == EPOCHS
    for epoch in range(1, EPOCHS):
        assert set(watch.teacher[epoch]) == set(watch.student[epoch])
        for key, value in watch.teacher[epoch].items():
            assert torch.equal(value, watch.student[epoch][key]), (epoch, key)
        moved = [not torch.equal(v, watch.teacher[epoch - 1][k])
                 for k, v in watch.teacher[epoch].items()]  # fmt: skip
        assert any(moved)
    steps = len(watch.losses) // EPOCHS
    assert all('loss_kd' not in logs for logs in watch.losses[:steps]), 'no previous epoch yet'
    assert all('loss_kd' in logs for logs in watch.losses[steps:])


def test_a_resumed_run_continues_exactly(tmp_path):
    whole, first, second = Watch(), Watch(), Watch()
    reference = train(config(tmp_path / 'whole', SELF), whole)
    folder = tmp_path / 'parts'
    train(config(folder, SELF, epochs=2), first)
    state = torch.load(folder / 'epoch_2.pth', weights_only=False)
    assert set(state['distiller']['teacher_state']) == {'epoch', 'weights'}
    assert not any('teacher' in key for key in state['state_dict'])
    resumed = train(config(folder, SELF, resume=True), second)
    assert first.losses + second.losses == whole.losses
    for key, value in reference.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize('begin', [dict(begin=0, by_epoch=True), dict(begin=1, by_epoch=False)])
def test_a_term_of_the_first_epoch_is_refused(tmp_path, begin):
    """The student before its training has random weights, and load_from does not reach it."""
    term = {**KD, 'warmup': 0, **begin}
    with pytest.raises(ValueError, match=r'terms\[0\] begins in the first epoch'):
        train(config(tmp_path, dict(SELF, terms=[term])))


def test_a_recipe_of_the_first_epoch_is_refused_with_its_terms_written_out(tmp_path):
    """It has no key for begin; what the message gives in its place must run."""
    cfg = config(tmp_path / 'recipe', dict(teacher='previous_epoch', recipe='kd'), **CLASSIFIER)
    with pytest.raises(ValueError, match=r"recipe 'kd' begins in the first epoch") as error:
        train(cfg)
    advice = str(error.value).split('the second: ')[1].removesuffix('.')
    written = eval(f'dict({advice})')
    (term,) = written['terms']
    assert (term['begin'], term['by_epoch'], term['loss']['type']) == (1, True, 'KDLoss')
    hook = dict(teacher='previous_epoch', **written)
    train(config(tmp_path / 'terms', hook, epochs=2, **CLASSIFIER))


def test_what_is_saved_is_a_copy():
    teacher = SelfTeacher(toy_classifier(0))
    state = teacher.resume_state()
    before = {key: value.clone() for key, value in state['weights'].items()}
    teacher.refresh(toy_classifier(1), epoch=1)
    moved = teacher.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in state['weights'].items())
    assert any(not torch.equal(value, before[key]) for key, value in moved.items())
    assert {value.device.type for value in state['weights'].values()} == {'cpu'}
    teacher.load_resume_state(state)
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())


def test_a_loop_without_epochs_is_refused(tmp_path):
    cfg = config(tmp_path, SELF)
    cfg.train_cfg = dict(by_epoch=False, max_iters=4)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    with pytest.raises(ValueError, match="'previous_epoch' needs a loop that counts epochs"):
        train(cfg)
