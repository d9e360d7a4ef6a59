"""channel-order and normalization: whether the teacher reads the images better otherwise."""

from __future__ import annotations

import numpy as np

from .class_checks import best_renaming
from .conventions import Convention
from .findings import Report
from .paired import Difference, difference
from .reader import Answers
from .readings import Objects, Reading, all_objects, image_scores

# How much better another convention must read, as a difference of mean scores and as a share of
# its own, and how rarely that comes up by chance. An exchange is one question, and so is the
# student's own normalisation; of other means and stds many are tried, and contrast alone changes
# scores.
SUSPECTED, GUESSED = (0.02, 0.03, 0.005), (0.03, 0.1, 0.001)
AS_GOOD, TRUE_NAMES = 0.05, 0.6  # shares of objects


def check_pixels(answers: Answers, report: Report) -> Convention | None:
    """Adds the finding for the convention that the teacher reads best, if one is better.

    Returns:
        That convention.
    """
    found = []
    for convention, readings in answers.others.items():
        gain = _gain(answers, readings)
        if gain is not None and _is_better(convention, gain, answers, readings):
            found.append((gain.mean, convention, gain))
    if not found:
        return None
    _, best, gain = max(found, key=lambda item: item[0])
    readings = answers.others[best]
    evidence = dict(
        configured=_mean(answers.teacher[: len(readings)], answers.comparable),
        otherwise=_mean(readings, answers.comparable),
        gain=gain.mean,
        p=gain.p,
        images=gain.count,
        read_as=best.name,
    )
    report.add(best.code, 'teacher', evidence, best.advice)
    return best


def _gain(answers: Answers, readings: list[Reading]) -> Difference | None:
    """Of the score on each image, against the images as configured."""
    if not answers.teacher:  # the configured conversion was refused
        return None
    own = image_scores(answers.teacher[: len(readings)], answers.comparable)
    return difference(image_scores(readings, answers.comparable) - own)


def _is_better(
    convention: Convention, gain: Difference, answers: Answers, readings: list[Reading]
) -> bool:
    least, share, p = SUSPECTED if convention.suspected else GUESSED
    reached = _mean(readings, answers.comparable)
    if gain.p > p or gain.mean < max(least, share * reached):
        return False
    before, after = all_objects(answers.teacher[: len(readings)]), all_objects(readings)
    if not answers.comparable:
        return True
    # Classes in another order make right answers wrong, and wrong images look better than right
    # ones. So both readings also count with the names that suit them best, and those of the better
    # one must be the true ones. Where both explain it, as where red and blue tell classes apart,
    # one wrong switch is likelier than many wrong names.
    names_of_both = _with_best_names(before), _with_best_names(after)
    return bool(
        after.right.mean() >= max(before.right.mean(), TRUE_NAMES * names_of_both[1])
        and names_of_both[1] >= names_of_both[0] - AS_GOOD
    )


def _with_best_names(objects: Objects) -> float:
    """Share of objects that are right if each class goes by the name it is called most often."""
    return float((best_renaming(objects)[objects.label] == objects.said).mean())


def _mean(readings: list[Reading], of_classes: bool) -> float:
    scores = image_scores(readings, of_classes)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else 0.0
