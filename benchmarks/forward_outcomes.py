"""What became of the predictions of ``forward.py``: outcomes, counts and the table.

The rule stands in the docstring of that script, fixed before the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import summary
from benchmarks.forward_pairs import PAIRS
from benchmarks.methods import BASELINE, TASKS
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
        made = dict(told, incomplete=row['incomplete'] or alone['incomplete'])
        if not made['incomplete']:
            happened = outcome(row['gain'])
            made.update(alone=alone[TASK.main], gain=row['gain'])
            made.update(wins=row['wins'], seeds=row['seeds'])
            made.update(outcome=happened, right=judged(told['answer'], happened))
        rows.append(made)
    return rows


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


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`compare` as Markdown, losing ones among them."""
    heads = ['teacher', 'recipe', 'predicted', 'because', 'outcome', 'right',
             'teacher alone', 'student alone', 'gain in top1', 'seeds better']  # fmt: skip
    marks = {True: 'yes', False: '**no**', None: '–'}
    lines = []
    for row in rows:
        line = [
            PAIRS[row['pair']].title,
            f'`{row["recipe"]}`',
            row['answer'],
            '; '.join(row['because']),
        ]
        if row['incomplete']:
            line += [f'incomplete: {row["incomplete"]}', *[''] * 5]
        else:
            numbers = [f'{row["teacher"]:.1f}', summary.points(row['alone'], scale=1)]
            gain = summary.points(row['gain'], sign=True, scale=1)
            wins = f'{row["wins"]}/{len(row["seeds"])}'
            line += [row['outcome'], marks[row['right']], *numbers, gain, wins]
        lines.append(line)
    return summary.markdown(heads, lines, texts=6)
