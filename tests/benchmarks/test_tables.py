"""The tables of the documents are those that the files of results give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import summary, tables
from benchmarks.methods import TASKS


def studies() -> list[Path]:
    """The files with rows that follow from single runs."""
    found = []
    for file in sorted(tables.RESULTS.glob('*.json')):
        content = json.loads(file.read_text())
        if content.get('rows') and content.get('runs'):
            found.append(file)
    return found


@pytest.mark.parametrize('page', tables.pages(), ids=lambda p: p.name)
def test_a_page_shows_what_was_measured(page):
    text = page.read_text()
    assert tables.render(text, page.name) == text, 'run python benchmarks/tables.py'


def test_the_pages_have_tables():
    marked = {page.name for page in tables.pages() if tables.MARKER.search(page.read_text())}
    assert {'README.md', 'results.md', 'lab-book.md', 'detection.md'} <= marked


@pytest.mark.parametrize('file', studies(), ids=lambda p: p.stem)
def test_rows_follow_from_the_single_runs(file):
    """Nobody has changed a row by hand."""
    content = json.loads(file.read_text())
    runs = content['runs']
    task = TASKS[runs[0].get('task', 'detection')]
    made = summary.summarise(runs, [row['method'] for row in content['rows']], task)
    for row, again in zip(content['rows'], made):
        assert row['incomplete'] == again['incomplete']
        for metric in (*task.metrics, 'gain') if not row['incomplete'] else ():
            assert row[metric] == pytest.approx(again[metric]), (row['method'], metric)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results with a file of ``recipes.py``: one recipe of three seeds, one of two."""
    runs = [
        dict(method=method, seed=seed, AP=ap, AP50=ap, AP75=ap, parameters=1000, **more)
        | {f'best_{m}': ap for m in ('AP', 'AP50', 'AP75')}
        for method, start, seeds, more in (
            ('student', 0.4, 3, {}),
            ('gdd', 0.5, 3, dict(weights=dict(gdd=0.2))),
            ('kd', 0.3, 2, {}),
        )
        for seed in range(seeds)
        for ap in [start + 0.01 * seed * (method == 'gdd')]
    ]
    rows = summary.summarise(runs, ['student', 'gdd', 'kd'])
    teacher = dict(split='val', AP=0.7, AP50=0.8, AP75=0.75, parameters=2000)
    command = 'python benchmarks/recipes.py --dataset digits --pair gfl --optimizer sgd --jobs 2'
    content = dict(command=command, teacher=teacher, rows=rows, runs=runs)
    (tmp_path / 'recipes_digits_gfl_sgd.json').write_text(json.dumps(content))
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    tables.load.cache_clear()
    yield 'recipes_digits_gfl_sgd'
    tables.load.cache_clear()


def test_a_file_of_recipes_is_a_table(results):
    made = tables.render(f'a\n\n<!-- table: {results} about -->old<!-- end -->\n\nb')
    assert 'old' not in made and made.startswith('a\n') and made.endswith('\nb')
    assert '| gdd | gdd 0.2 | 51.0 ± 1.0 |' in made and '+11.0 ± 1.0 | 3/3 |' in made
    assert '| kd | – | incomplete: 2 of at least 3 seeds |' in made
    assert 'AP 70.0' in made and '--optimizer sgd\n' in made
    assert tables.render(made) == made


def test_gains_and_single_numbers(results):
    made = tables.render(
        f'<!-- gains: {results} rows="student, GDD=none/gdd, kd" --><!-- end -->\n'
        f'It gains <!-- gain: {results} gdd --><!-- end --> points.\n'
        f'<!-- method: gdd {results} --><!-- end -->'
    )
    assert '| | GFL on digits, SGD |' in made
    assert '| GDD | +11.0 ± 1.0 |' in made and '| `kd` | incomplete |' in made
    assert f'gains <!-- gain: {results} gdd -->+11.0 ± 1.0<!-- end --> points' in made
    assert '| GFL on digits, SGD | AP | gdd 0.2 | 40.0 ± 0.0 | 51.0 ± 1.0 | +11.0' in made


@pytest.mark.parametrize(
    'marker, said',
    [
        ('table: recipes_digits_gfl', 'near: recipes_digits_gfl_sgd'),
        ('table: recipes_digits_gfl_sgd methods=gddd', 'it has student, gdd, kd'),
        ('table: recipes_digits_gfl_sgd rows=gdd', 'unknown option rows'),
        ('gain: recipes_digits_gfl_sgd kd', 'incomplete: 2 of at least 3 seeds'),
        ('gains: recipes_digits_gfl_sgd', 'rows=METHOD'),
    ],
)
def test_a_wrong_marker_says_what_is_wrong(results, marker, said):
    with pytest.raises(tables.MarkerError, match=said) as error:
        tables.render(f'<!-- {marker} --><!-- end -->', 'docs/x.md')
    assert f'docs/x.md, marker `{marker}`' in str(error.value)


def test_a_marker_without_an_end_is_no_table():
    with pytest.raises(tables.MarkerError, match='1 markers, but 0'):
        tables.render('<!-- table: digits -->\n\ntext')


def test_check_writes_nothing(tmp_path, monkeypatch, capsys):
    page = tmp_path / 'README.md'
    page.write_text('<!-- gain: digits cwd -->+99 ± 0<!-- end -->')
    monkeypatch.setattr(tables, 'ROOT', tmp_path)
    assert tables.main(['--check']) == 1 and '+99' in page.read_text()
    assert 'README.md: differs' in capsys.readouterr().out
    assert tables.main([]) == 0 and '+99' not in page.read_text()
    assert tables.main(['--check']) == 0
