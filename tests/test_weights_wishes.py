"""Weights that are wished for: every form, which one wins, and what a run writes down of them."""

from __future__ import annotations

import argparse
import copy
import shlex
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from toys import (
    TERM,
    hook_config,
    runner_config,
    toy_batch,
    toy_classifier,
    toy_model,
    train,
)

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.hooks import DistillHook
from mmkd_plugin.recipes import classification, defaults, features
from mmkd_plugin.weights import TARGETS
from mmkd_plugin.weights.wishes import joined, parse_flags, parse_text, wish_text

PAIR = dict(config=dict(type='ToyClassifier', width=8), allow_random=True)


def hook(recipe: str = 'gdd+kd', **others) -> dict:
    """A hook with a recipe for the toy classifier."""
    made = hook_config(teacher=copy.deepcopy(PAIR), **others)
    del made['terms']
    return dict(made, recipe=recipe)


def config(folder, *hooks, **overrides) -> Config:
    return runner_config(folder, *hooks, model=dict(type='ToyClassifier'), **overrides)


def state(folder, iteration: int = 4) -> dict:
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=False)


def same(a, b) -> bool:
    a, b = (state(folder)['state_dict'] for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def dumped(folder) -> Config:
    (file,) = folder.glob('*.py')
    return Config.fromfile(file)


# -- forms -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text, wish',
    [
        ('20', 20.0),
        ('1e+3', 1000.0),
        (' 0 ', 0.0),
        ('auto', 'auto'),
        ('published', 'published'),
        ('ratio:0.3', dict(ratio=0.3)),
    ],
)
def test_every_form_of_a_value(text, wish):
    assert parse_text(text, 'x') == wish
    assert parse_text(wish_text(wish), 'x') == wish
    assert parse_flags(None, [f'gdd={text}']) == dict(gdd=wish)


@pytest.mark.parametrize(
    'text, words',
    [
        ('automatic', ['neither a number nor', "nearest: 'auto'"]),
        ('publish', ["nearest: 'published'"]),
        ('', ['neither a number']),
        ('nan', ['finite number']),
        ('-1', ['-1', '0 or more']),
        ('ratio:0', ['ratio', 'above 0']),
        ('ratio:x', ["'ratio:x'", "'ratio:0.3'"]),
    ],
)
def test_a_wrong_value_is_refused_by_flag_and_key(text, words):
    with pytest.raises(ValueError) as error:
        parse_flags(None, [f'gdd={text}'])
    assert all(word in str(error.value) for word in ['--weight gdd', *words]), error.value
    with pytest.raises(ValueError, match="recipe 'gdd:"):
        DistillHook(**{k: v for k, v in hook(f'gdd:{text}').items() if k != 'type'})


@pytest.mark.parametrize(
    'given, words',
    [
        (dict(weights='automatic'), ["weights='automatic'", "nearest: 'auto'"]),
        (dict(weights=dict(gdd='automatic')), ["weights['gdd']='automatic'", "nearest: 'auto'"]),
        (dict(weights=dict(gdd=True)), ["weights['gdd']=True", 'number']),
        (dict(weights=dict(gdd=dict(ration=1))), ["'ration'", "'ratio'"]),
        (dict(weights=dict(gddd=1)), ["'gddd'", "nearest: 'gdd'", 'The terms are gdd, kd']),
        (dict(weights=3), ['weights=3', 'dict(gdd=20)']),
        (dict(term_options=dict(kdd=dict(begin=2))), ['term_options', "nearest: 'kd'"]),
        (
            dict(weights=dict(gdd=1), term_options=dict(gdd=dict(weight=2))),
            ['weights gives', "'gdd' the weight 1", 'term_options 2'],
        ),
    ],
)
def test_a_hook_refuses_them_before_any_model_is_built(given, words):
    with pytest.raises(ValueError) as error:
        DistillHook(teacher=dict(config='none.py'), recipe='gdd+kd', **given)
    assert all(word in str(error.value) for word in words), error.value


def test_odd_names_can_be_typed_as_the_run_prints_them(tmp_path):
    names = ['kd=2', 'it is $HOME']
    terms = [dict(loss=dict(type='CWDLoss'), student='neck.convs.*', name=name) for name in names]
    train(runner_config(tmp_path, hook_config(*terms, weights='auto')))
    (line,) = [
        line
        for line in (tmp_path / 'distillation.txt').read_text().splitlines()
        if '--weight' in line
    ]
    typed = shlex.split(line.partition(': ')[2])
    assert typed[::2] == ['--weight', '--weight', '--limit-spikes']
    assert parse_flags(None, typed[1:4:2]) == state(tmp_path)['distiller']['weights']


def test_no_term_is_called_as_all_of_them_are():
    with pytest.raises(ValueError, match=r"name='\*' stands for all terms"):
        mmkd_plugin.attach(toy_model(0), toy_model(1), [dict(TERM, name='*')])


def test_capital_letters_are_a_near_match():
    with pytest.raises(ValueError, match="nearest: 'gdd'"):
        recipes.describe('GDD')
    with pytest.raises(ValueError, match="nearest: 'kd'"):
        DistillHook(teacher=dict(config='none.py'), recipe='gdd+kd', weights=dict(KD=1))


# -- which one wins ----------------------------------------------------------------------------


def weights_of(recipe: str, weights=None) -> dict:
    student, teacher = toy_classifier(0), toy_classifier(1)
    plan = recipes.resolve(recipe, student, teacher, None, weights)
    return dict(zip(recipes.term_names(recipe), [term['weight'] for term in plan['terms']]))


def test_default_then_name_then_weights(monkeypatch):
    published = dict(gdd=145.0, kd=0.9)
    assert weights_of('gdd+kd') == dict(gdd='auto', kd=0.9)
    assert weights_of('gdd:20+kd:auto') == dict(gdd=20.0, kd='auto')
    assert weights_of('gdd:20+kd', dict(gdd=3)) == dict(gdd=3, kd=0.9)
    assert weights_of('gdd:20+kd:1', 'published') == published
    assert weights_of('gdd+kd', {'*': 'auto', 'kd': 2}) == dict(gdd='auto', kd=2)
    monkeypatch.setitem(defaults.DEFAULTS, 'kd', {'*': 'auto', 'image': dict(ratio=0.5)})
    assert weights_of('gdd+kd') == dict(gdd='auto', kd=dict(ratio=0.5))
    assert weights_of('gdd+kd', dict(gdd='published')) == dict(gdd=145.0, kd=dict(ratio=0.5))
    choice = recipes.choose('gdd', toy_classifier(0), toy_classifier(1))
    assert choice.published == dict(gdd=145.0)


def test_every_recipe_has_a_default_and_a_published_weight():
    assert set(defaults.DEFAULTS) == set(recipes.names())


def test_what_speaks_of_all_terms_puts_aside_what_was_said_before():
    flags = parse_flags('auto', ['kd=ratio:0.2', 'kd=3'])
    assert flags == {'*': 'auto', 'kd': 3.0}
    assert joined(dict(gdd=20), flags) == flags


@pytest.mark.parametrize('weights', [dict(gdd=20), 'auto'])
def test_terms_of_a_config_can_be_changed(weights):
    student = toy_model(0)
    distiller = mmkd_plugin.attach(
        student, toy_model(1), [TERM], probe_size=(16, 16), weights=weights
    )
    (term,) = distiller.terms
    assert (term.weight, term.target) == ((20, None) if weights != 'auto' else (1.0, term.target))
    assert (term.target is None) == (weights != 'auto')


def test_terms_of_a_config_have_no_published_number():
    with pytest.raises(ValueError, match="'gdd' is written in the config.*no published number"):
        mmkd_plugin.attach(toy_model(0), toy_model(1), [TERM], weights='published')


# -- what a run writes down --------------------------------------------------------------------


def test_the_dumped_config_repeats_the_run_when_the_tables_change(tmp_path, monkeypatch):
    train(config(tmp_path / 'run', hook(weights=dict(gdd=2))))
    saved = dumped(tmp_path / 'run')
    (entry,) = saved.custom_hooks
    (other,) = (tmp_path / 'run').rglob('vis_data/config.py')
    assert Config.fromfile(other).custom_hooks == saved.custom_hooks
    assert not {'recipe', 'weights', 'term_options'} & set(entry)
    assert [term.weight for term in entry.terms] == [2, 0.9]
    assert entry.task_weight == pytest.approx(0.1)
    inside = Config.fromstring(state(tmp_path / 'run')['distiller']['cfg'], '.py')
    assert inside.custom_hooks == saved.custom_hooks

    monkeypatch.setattr(classification, '_kd', lambda pair: (0.5, dict(temperature=2.0)))
    monkeypatch.setattr(
        features,
        'RECIPES',
        dict(gdd=features.Recipe('', 'GDDLoss', lambda kind: (1.0, dict(temperature=1.0), ''))),
    )
    saved.work_dir = str(tmp_path / 'again')
    train(saved)
    assert same(tmp_path / 'run', tmp_path / 'again')
    train(config(tmp_path / 'other', hook(weights=dict(gdd=2))))
    assert not same(tmp_path / 'run', tmp_path / 'other')

    saved.merge_from_dict({'custom_hooks.0.terms.0.weight': 3})
    saved.work_dir = str(tmp_path / 'third')
    train(saved)
    assert state(tmp_path / 'third')['distiller']['weights'] == dict(gdd=3, kd=0.9)


def test_automatic_weights_are_written_down_as_their_targets(tmp_path):
    train(config(tmp_path, hook('gdd:auto+kd:ratio:0.2')))
    gdd, kd = (term.weight for term in dumped(tmp_path).custom_hooks[0].terms)
    assert gdd == dict(ratio=TARGETS['image_feature']) and kd == dict(ratio=0.2)


@pytest.mark.parametrize('how', ['recipe', 'dumped'])
def test_resume_with_either_config_goes_on_without_a_word(tmp_path, capsys, how):
    first = hook('gdd:auto+kd', weights=dict(kd=0.5))
    train(config(tmp_path / 'whole', copy.deepcopy(first)))
    more = dumped(tmp_path / 'whole') if how == 'dumped' else config(tmp_path, first)
    file = str(tmp_path / 'whole' / 'iter_2.pth')
    more.merge_from_dict(dict(resume=True, load_from=file, work_dir=str(tmp_path / 'rest')))
    capsys.readouterr()
    train(more)
    assert 'settings' not in capsys.readouterr().out
    assert same(tmp_path / 'whole', tmp_path / 'rest')


def test_a_hook_with_numbers_of_its_own_leaves_the_config_as_it_is(tmp_path):
    own = hook_config()
    train(runner_config(tmp_path, own))
    assert dumped(tmp_path).custom_hooks == [own]


def test_a_hook_that_is_an_object_leaves_the_config_as_it_is(tmp_path):
    made = DistillHook(**{k: v for k, v in hook().items() if k != 'type'})
    train(config(tmp_path), made)
    assert dumped(tmp_path).custom_hooks == []
    assert (tmp_path / 'distillation.txt').is_file()


def test_the_variable_of_a_config_file_does_not_stay_in_the_students_config(tmp_path):
    """What ``terms = [...]`` and a hook with ``terms=terms`` become."""
    term = dict(TERM, weight='auto')
    train(runner_config(tmp_path, hook_config(term), terms=[term]))
    plain = Config.fromstring(state(tmp_path)['meta']['cfg'], '.py')
    assert 'terms' not in plain and not plain.custom_hooks


def test_a_work_dir_that_becomes_read_only_does_not_stop_the_run(tmp_path, monkeypatch):
    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, 'Permission denied', str(self))

    monkeypatch.setattr(Path, 'write_text', refuse)
    train(config(tmp_path, hook()))
    assert (tmp_path / 'iter_4.pth').is_file() and not (tmp_path / 'distillation.txt').exists()


class Reads(Hook):
    """Keeps what the plan says before the first iteration."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 0:
            self.text = Path(runner.work_dir, 'distillation.txt').read_text()


def test_the_plan_has_every_weight_before_and_after_it_is_found(tmp_path):
    reads = Reads()
    late = dict(kd=dict(begin=2, end=9, warmup=4, interval=2))
    train(config(tmp_path, hook('gdd:auto+kd:0.5', term_options=late), max_iters=12), reads)
    before, after = reads.text, (tmp_path / 'distillation.txt').read_text()
    rows = [' '.join(line.split()) for line in before.splitlines()]
    assert 'term loss student <- teacher weight schedule' in rows
    assert "gdd GDDLoss backbone (levels [-1]) auto (0.1 x the task's gradient) always" in rows
    schedule = 'iterations 2 to 8, ramp over 4 iterations, every 2 iterations'
    assert f'kd KDLoss cls_logits 0.5 {schedule}' in rows
    assert 'task_weight=0.1 is the smallest of their wishes (gdd 1, kd 0.1)' in before
    assert 'own losses times 0.1' in before and 'found' not in before.replace('to be found', '')
    assert '(1, 8, 4, 4)' in before
    found = state(tmp_path, 12)['distiller']['weights']
    assert found['kd'] == 0.5
    assert f'{found["gdd"]:g}, found (0.1 x' in after
    assert f'--weight gdd={found["gdd"]:g} --weight kd=0.5' in after


# -- from Python -------------------------------------------------------------------------------


def test_attach_takes_a_recipe():
    def losses(**how):
        student = toy_classifier(0)
        mmkd_plugin.attach(student, toy_classifier(1, width=8), probe_size=(16, 16), **how)
        return student.train()(*toy_batch(), mode='loss')

    plan = recipes.resolve('gdd:20+kd', toy_classifier(0), toy_classifier(1, width=8))
    by_hand = losses(terms=plan['terms'], task_weight=0.1)
    by_name = losses(recipe='gdd+kd', weights=dict(gdd=20))
    assert by_hand.keys() == by_name.keys() == {'loss_cls', 'loss_gdd', 'loss_kd'}
    assert all(torch.allclose(by_hand[key], by_name[key], rtol=1e-6) for key in by_hand)
    with pytest.raises(ValueError, match='attach needs either terms.*and not both'):
        losses()
    with pytest.raises(ValueError, match='attach needs either terms.*and not both'):
        losses(terms=[], recipe='gdd')
    with pytest.raises(ValueError, match="no recipe 'gddd'"):
        losses(recipe='gddd')


@pytest.fixture
def teacher_file(tmp_path) -> str:
    torch.save(dict(state_dict=toy_classifier(1, width=8).state_dict()), tmp_path / 'teacher.pth')
    return str(tmp_path / 'teacher.pth')


def test_distill_makes_a_config_that_trains_and_leaves_its_own_alone(tmp_path, teacher_file):
    plain = config(tmp_path / 'run')
    before = copy.deepcopy(plain)
    teacher = Config(dict(model=PAIR['config']))
    weights = dict(kd=dict(ratio=0.2))
    made = mmkd_plugin.distill(
        plain, teacher, teacher_file, recipe='gdd+kd', weights=weights, task_weight=1.0, seed=3
    )
    weights['kd']['ratio'] = 9
    assert plain.to_dict() == before.to_dict() and plain.custom_hooks == []
    (entry,) = made.custom_hooks
    assert entry.type == 'mmkd_plugin.DistillHook' and entry.seed == 3
    assert entry.weights == dict(kd=dict(ratio=0.2))
    train(made)
    assert dumped(tmp_path / 'run').custom_hooks[0].task_weight == 1.0


def test_distill_chooses_a_recipe_and_takes_terms(tmp_path, teacher_file):
    def entry(cfg, **how):
        return mmkd_plugin.distill(cfg, PAIR['config'], teacher_file, **how).custom_hooks[0]

    parts = dict(type='ImageClassifier', backbone=dict(), head=dict())
    assert entry(runner_config(tmp_path, model=parts)).recipe == 'kd'
    assert entry(runner_config(tmp_path)).recipe == 'gdd'
    made = entry(runner_config(tmp_path), terms=[TERM])
    assert 'recipe' not in made and made.terms == [TERM]


@pytest.mark.parametrize(
    'how, error, words',
    [
        (dict(checkpoint='gone.pth'), FileNotFoundError, 'no file gone.pth'),
        (dict(teacher='gone.py'), FileNotFoundError, 'gone.py'),
        (dict(checkpoint=None), ValueError, 'without trained weights'),
        (dict(recipe='gddd'), ValueError, "nearest: 'gdd'"),
        (dict(recipe='gdd', terms=[TERM]), ValueError, 'and not both'),
        (dict(recipe='kd', weights=dict(kdd=1)), ValueError, "nearest: 'kd'"),
        (dict(recipe='funmatch'), ValueError, 'ClsDataPreprocessor'),
        (dict(task_weight=-1), ValueError, 'task_weight=-1 must be'),
        (dict(sed=3), ValueError, "'sed'; nearest: 'seed'"),
        (dict(seed='a'), ValueError, "seed='a'"),
        (dict(probe_size=3), ValueError, 'probe_size=3 must be'),
        (dict(terms=[dict(TERM, weigth=2)]), ValueError, "'weigth'; nearest: 'weight'"),
        (dict(terms=[TERM, dict(student='neck')]), ValueError, r"terms\[1\] lacks 'loss'"),
        (dict(terms=[dict(TERM, begin=-3)]), ValueError, 'begin=-3'),
        (dict(cfg='student.py'), ValueError, 'Config.fromfile'),
    ],
)
def test_distill_refuses_with_ordinary_exceptions(tmp_path, teacher_file, how, error, words):
    given = dict(cfg=config(tmp_path), teacher=PAIR['config'], checkpoint=teacher_file)
    with pytest.raises(error, match=words):
        mmkd_plugin.distill(**{**given, **how})


def test_distill_refuses_a_second_hook(tmp_path, teacher_file):
    once = mmkd_plugin.distill(config(tmp_path), PAIR['config'], teacher_file)
    with pytest.raises(ValueError, match='already has a DistillHook'):
        mmkd_plugin.distill(once, PAIR['config'], teacher_file)


def test_distill_changes_the_hook_that_a_config_has(tmp_path, teacher_file):
    """What the flags of the command line do without ``--teacher``."""
    once = mmkd_plugin.distill(
        config(tmp_path), PAIR['config'], teacher_file, recipe='gdd+kd', weights=dict(gdd=2), seed=3
    )
    before = copy.deepcopy(once.to_dict())
    options = {'kd.loss.temperature': 2, 'kd.weight': 0.5}
    (entry,) = mmkd_plugin.distill(once, term_options=options, task_weight=0.5).custom_hooks
    assert entry.weights == dict(gdd=2, kd=0.5) and entry.task_weight == 0.5
    assert entry.term_options == dict(kd=dict(loss=dict(temperature=2))) and entry.seed == 3
    (entry,) = mmkd_plugin.distill(once, dict(class_map='names'), recipe='pkd').custom_hooks
    assert (entry.recipe, entry.teacher.class_map) == ('pkd', 'names')
    assert entry.teacher.checkpoint == teacher_file and 'weights' not in entry
    (entry,) = mmkd_plugin.distill(once, terms=[TERM]).custom_hooks
    assert entry.terms == [TERM] and 'recipe' not in entry
    assert once.to_dict() == before
    with pytest.raises(FileNotFoundError, match='no file gone.pth'):
        mmkd_plugin.distill(once, checkpoint='gone.pth')
    with pytest.raises(ValueError, match='terms of its own'):
        mmkd_plugin.distill(mmkd_plugin.distill(once, terms=[TERM]), recipe='kd')


@pytest.mark.parametrize(
    'option, value', [('task_weight', 0.5), ('weights.gdd', 3), ('term_options.gdd.begin', 5)]
)
def test_what_the_command_line_says_of_a_hook_stays_beside_a_recipe(
    tmp_path, teacher_file, option, value
):
    from mmkd_plugin.cli.arguments import add_distillation, add_distillation_arguments

    cfg = mmkd_plugin.distill(
        config(tmp_path), PAIR['config'], teacher_file, recipe='gdd+kd', task_weight=0.9
    )
    options = {f'custom_hooks.0.{option}': value}
    cfg.merge_from_dict(options)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', type=dict)
    add_distillation_arguments(parser)
    args = parser.parse_args(['--recipe', 'gdd'])
    args.cfg_options = options
    add_distillation(cfg, args)
    (entry,) = cfg.custom_hooks
    for key in option.split('.'):
        entry = entry[key]
    assert entry == value and cfg.custom_hooks[0].recipe == 'gdd'
    if option != 'task_weight':
        assert 'task_weight' not in cfg.custom_hooks[0]  # that of the old recipe


def test_distill_needs_a_teacher_or_a_hook(tmp_path):
    with pytest.raises(ValueError, match='no DistillHook in custom_hooks and no teacher is named'):
        mmkd_plugin.distill(config(tmp_path), recipe='gdd')
    made = mmkd_plugin.distill(config(tmp_path), 'previous_epoch', recipe='kd')
    with pytest.raises(ValueError, match="teacher='previous_epoch', which takes no checkpoint"):
        mmkd_plugin.distill(made, checkpoint='teacher.pth')


def test_the_command_line_and_distill_give_one_config(tmp_path, teacher_file):
    """Every flag that says something of distillation, and the same in Python."""
    from mmkd_plugin.cli.arguments import add_distillation, add_distillation_arguments

    file = tmp_path / 'pair.py'
    Config(dict(model=PAIR['config'])).dump(file)
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options')
    add_distillation_arguments(parser)
    flags = ['--teacher', str(file), '--teacher-checkpoint', teacher_file, '--recipe', 'gdd+kd']
    flags += ['--weights', 'published', '--weight', 'gdd=3', '--class-map', '1,0']
    flags += ['--term-options', 'kd.loss.temperature=2', '--task-weight', '0.5']
    flags += ['--init-student', 'head', '--teacher-cfg-options', 'model.type=ToyClassifier']
    flags += ['--limit-spikes', '7.5']
    by_flags = config(tmp_path)
    add_distillation(by_flags, parser.parse_args(flags))
    by_hand = mmkd_plugin.distill(
        config(tmp_path),
        dict(
            config=str(file),
            class_map=[1, 0],
            cfg_options={'model.type': 'ToyClassifier'},
            allow_random=False,
        ),
        teacher_file,
        recipe='gdd+kd',
        weights={'*': 'published', 'gdd': 3},
        term_options=dict(kd=dict(loss=dict(temperature=2))),
        task_weight=0.5,
        init_student='head',
        limit_spikes=7.5,
    )
    assert by_flags.to_dict() == by_hand.to_dict()
