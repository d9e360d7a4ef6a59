"""The forward test of the doctor's verdict: its outcome rule, its table, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import forward, forward_outcomes, worker
from benchmarks.pool import Pool
from mmkd_plugin.diagnosis.verdict import HELPS, NOT, UNKNOWN

RESULTS = Path(__file__).parents[2] / 'benchmarks' / 'results'


@pytest.mark.parametrize(
    ('gain', 'happened'),
    [
        ((2.0, 1.9), forward_outcomes.HELPED),
        ((2.0, 2.0), forward_outcomes.UNCLEAR),  # not beyond a deviation
        ((0.5, 0.0), forward_outcomes.HELPED),
        ((0.0, 0.0), forward_outcomes.UNCLEAR),
        ((-1.0, 1.0), forward_outcomes.UNCLEAR),
        ((-1.0, 0.9), forward_outcomes.HARMED),
    ],
)
def test_the_outcome_is_the_mean_against_one_deviation(gain, happened):
    assert forward_outcomes.outcome(gain) == happened


@pytest.mark.parametrize(
    ('told', 'right'),
    [
        (HELPS, (True, False, False)),
        (NOT, (False, True, True)),
        (UNKNOWN, (None, None, None)),  # never right
    ],
)
def test_a_prediction_is_right_or_wrong_or_none(told, right):
    outcomes = (forward_outcomes.HELPED, forward_outcomes.HARMED, forward_outcomes.UNCLEAR)
    assert tuple(forward_outcomes.judged(told, happened) for happened in outcomes) == right


def run(pair: str, method: str, seed: int, top1: float) -> dict:
    numbers = dict.fromkeys(('top1', 'top5', 'best_top1', 'best_top5'), top1)
    return dict(pair=pair, method=method, seed=seed, **numbers)


def told(recipe: str, answer: str) -> dict:
    return dict(pair='early', recipe=recipe, answer=answer, because=['why'], teacher=50.0)


def test_the_table_keeps_losing_and_unfinished_rows():
    """Gains are paired by seed: the students alone differ more than any of the gains."""
    gains = dict(kd=(-3, -2, -4), gdd=(1, 2, 3), dkd=(2, 3, 4))
    runs = [run('digits', 'student', seed, 60 + 10 * seed) for seed in range(3)]
    runs += [
        run('early', recipe, seed, 60 + 10 * seed + gain)
        for recipe, values in gains.items()
        for seed, gain in enumerate(values)
    ]
    runs += [run('early', 'ckd', 0, 90), run('twin', 'ckd', 1, 90)]
    predictions = [
        told('kd', HELPS), told('gdd', HELPS), told('dkd', UNKNOWN), told('ckd', NOT),
    ]  # fmt: skip
    rows = forward_outcomes.compare(predictions, runs)
    assert [row.get('right') for row in rows] == [False, True, None, None]
    assert rows[0]['gain'] == pytest.approx((-3, 1))
    assert rows[3]['incomplete'] == '1 of at least 3 seeds'
    counts = forward_outcomes.score(rows)
    assert counts['all'] == counts['clear'] == dict(right=1, wrong=1, undecided=1)
    assert counts[HELPS] == dict(right=1, wrong=1, undecided=0)
    text = forward_outcomes.score_text(counts)
    assert '`helps`: 1 right, 1 wrong. `does not help`: 0 right, 0 wrong. `cannot tell`: 1.' in text
    lines = forward_outcomes.table(rows).splitlines()[2:]
    assert len(lines) == 4
    assert '**no**' in lines[0] and '-3.0 ± 1.0' in lines[0]
    assert 'incomplete' in lines[3]


def study(tmp_path: Path) -> forward.ForwardStudy:
    args = SimpleNamespace(argv=['run'], seeds=[3], work_dir=tmp_path / 'runs', results=tmp_path)
    return forward.ForwardStudy(args, Pool(1, 1))


@pytest.fixture
def digits_only(monkeypatch):
    for known in (forward.PAIRS, forward.STUDENTS):
        for name in [name for name in known if name.startswith('cifar')]:
            monkeypatch.delitem(known, name)


@pytest.mark.usefixtures('digits_only')
def test_nothing_runs_that_was_not_predicted(tmp_path: Path):
    teachers = {name: dict(sha256='0') for name in forward.PAIRS}
    with pytest.raises(SystemExit, match='predict comes before run'):
        study(tmp_path).plan(teachers)
    row = dict(told('kd', HELPS), teacher_sha256='1')
    study(tmp_path).file.write_text(json.dumps(dict(predictions=[row])))
    with pytest.raises(SystemExit, match='another teacher'):
        study(tmp_path).plan(teachers)
    with pytest.raises(SystemExit, match='predictions are made once'):
        study(tmp_path).predict()


@pytest.mark.usefixtures('digits_only')
def test_a_row_that_was_begun_is_not_predicted(tmp_path: Path):
    made = study(tmp_path)
    teachers = {name: dict(sha256='0') for name in forward.PAIRS}
    folder = next(iter(made.rows(teachers, 'kd', 'early')))
    folder.mkdir(parents=True)
    with pytest.raises(SystemExit, match='begun before it was predicted'):
        made.prediction('kd', 'early', {}, teachers, made.alone())


def test_the_teacher_of_a_run_is_the_network_that_was_trained(tmp_path: Path):
    """ResNet32 has no config of its own: its depth goes into the hook."""
    (tmp_path / 'teacher.pth').touch()
    teacher = dict(
        config=forward.PAIRS['large'].teacher.path,
        checkpoint=str(tmp_path / 'teacher.pth'),
        sha256='0',
        cfg_options={'model.backbone.depth': 32},
    )
    plan = study(tmp_path).rows(dict(large=teacher), 'kd', 'large')
    ((folder, settings),) = plan.items()
    (hook,) = worker.build_config(settings, folder).custom_hooks
    assert hook['teacher']['cfg_options'].model.backbone.depth == 32
    assert hook['recipe'] == 'kd'


def test_the_committed_table_follows_from_predictions_and_runs():
    """Nobody has changed a prediction or an outcome by hand, and no row was left out."""
    predictions = json.loads((RESULTS / f'{forward.PREDICTIONS}.json').read_text())['predictions']
    rows = {(row['pair'], row['recipe']) for row in predictions}
    assert rows == {(name, recipe) for name, p in forward.PAIRS.items() for recipe in p.recipes}
    content = json.loads((RESULTS / 'forward.json').read_text())
    made = json.loads(json.dumps(forward_outcomes.compare(predictions, content['runs'])))
    assert content['outcomes'] == made
    assert content['score'] == forward_outcomes.score(made)
