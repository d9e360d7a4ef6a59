"""What became of the doctor's predictions: outcomes, counts and the table.

The rule stands in the docstring of ``forward.py``, fixed before the runs. Those of detectors and
segmenters come from ``recipes.py --predict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import summary
from benchmarks.forward_pairs import PAIRS
from benchmarks.methods import BASELINE, TASKS, Task
from mmkd_plugin.diagnosis import verdict

TASK = TASKS['classification']
HELPED, HARMED, UNCLEAR = 'helped', 'harmed', 'no clear gain'
RIGHT = {verdict.HELPS: (HELPED,), verdict.NOT: (HARMED, UNCLEAR)}  # outcomes, by prediction


def outcome(gain: tuple[float, float]) -> str:
    """What a row's paired gains amount to.

    Args:
        gain: their mean and sample standard deviation.
    """
    mean, deviation = gain
    if mean > 0 and mean > deviation:
        return HELPED
    return HARMED if mean < 0 and mean < -deviation else UNCLEAR


def judged(prediction: str, happened: str) -> bool | None:
    """Whether a prediction was right; None where it did not commit itself."""
    return None if prediction == verdict.UNKNOWN else happened in RIGHT[prediction]


def compare(
    predictions: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each prediction, with its outcome.

    Args:
        predictions: of ``predict``.
        runs: finished runs, with ``pair``; those of students alone have their name there.

    Returns:
        The predictions, each with ``incomplete`` (why it has no outcome, or None) and ``alone``,
        ``gain``, ``wins``, ``seeds``, ``outcome`` and ``right`` (None for 'cannot tell').
    """
    rows = []
    for told in predictions:
        recipe, student = told['recipe'], PAIRS[told['pair']].student
        own = [r for r in runs if (r['pair'], r['method']) == (told['pair'], recipe)]
        own += [r for r in runs if (r['pair'], r['method']) == (student, BASELINE)]
        alone, row = summary.summarise(own, [BASELINE, recipe], TASK)
        rows.append(outcome_of(told, alone, row, TASK))
    return rows


def outcome_of(
    told: dict[str, Any], alone: dict[str, Any], row: dict[str, Any], task: Task
) -> dict[str, Any]:
    """One row of :func:`compare`, of rows of a table as :func:`summary.summarise` makes them."""
    made = dict(told, incomplete=row['incomplete'] or alone['incomplete'])
    if not made['incomplete']:
        happened = outcome(row['gain'])
        made.update(alone=alone[task.main], gain=row['gain'])
        made.update(wins=row['wins'], seeds=row['seeds'])
        made.update(outcome=happened, right=judged(told['answer'], happened))
    return made


def score(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Counts of :func:`compare`: right, wrong and undecided, by prediction and of clear rows.

    A row is clear where it helped or harmed.
    """
    done = [row for row in rows if not row['incomplete']]
    groups = {
        answer: [row for row in done if row['answer'] == answer]
        for answer in (verdict.HELPS, verdict.NOT, verdict.UNKNOWN)
    }
    groups.update(all=done, clear=[row for row in done if row['outcome'] != UNCLEAR])
    marks = dict(right=True, wrong=False, undecided=None)
    return {
        name: {key: sum(row['right'] is mark for row in group) for key, mark in marks.items()}
        for name, group in groups.items()
    }


def score_text(counts: dict[str, dict[str, int]]) -> str:
    """The counts as sentences."""
    parts = [
        f'`{answer}`: {counts[answer]["right"]} right, {counts[answer]["wrong"]} wrong.'
        for answer in RIGHT
    ]
    clear = counts['clear']
    return ' '.join([
        f'{sum(counts["all"].values())} predictions have an outcome.',
        *parts,
        f'`{verdict.UNKNOWN}`: {counts["all"]["undecided"]}.',
        f'Of the rows whose mean is beyond one deviation: {clear["right"]} right, '
        f'{clear["wrong"]} wrong, {clear["undecided"]} `{verdict.UNKNOWN}`.',
    ])  # fmt: skip


def table(rows: Sequence[dict[str, Any]], task: Task = TASK) -> str:
    """The rows of :func:`compare` as Markdown, losing ones among them.

    Args:
        rows: with a ``title`` where ``pair`` is none of ``forward.py``.
        task: what was measured.
    """
    heads = ['teacher', 'recipe', 'predicted', 'because', 'outcome', 'right',
             'teacher alone', 'student alone', f'gain in {task.main}', 'seeds better']  # fmt: skip
    marks = {True: 'yes', False: '**no**', None: '–'}
    lines = []
    for row in rows:
        line = [
            row.get('title') or PAIRS[row['pair']].title,
            f'`{row["recipe"]}`',
            row['answer'],
            '; '.join(row['because']),
        ]
        if row['incomplete']:
            line += [f'incomplete: {row["incomplete"]}', *[''] * 5]
        else:
            teacher = task.scale * row['teacher']
            numbers = [f'{teacher:.1f}', summary.points(row['alone'], scale=task.scale)]
            gain = summary.points(row['gain'], sign=True, scale=task.scale)
            wins = f'{row["wins"]}/{len(row["seeds"])}'
            line += [row['outcome'], marks[row['right']], *numbers, gain, wins]
        lines.append(line)
    return summary.markdown(heads, lines, texts=6)
