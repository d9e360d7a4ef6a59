"""``mmkd inspect`` and ``tools/inspect_model.py``: places, views and recipes of a pair."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from torch import nn

from .. import recipes
from ..images.pipelines import training_data
from ..images.size import image_size
from ..model_config import load_model_config
from ..recipes.detection import RECIPES
from ..taps import TapError
from ..taps.tappable import Place, survey
from ..teacher import build_model
from ..views import fitting, make_logit_view, view_names
from .errors import UsageError, one_line_errors
from .listing import Pair, as_json, show_recipes, show_table, show_views
from .running import add_debug_argument, new_parser

DESCRIPTION = """\
List the places of a model that can be tapped, beside those of a teacher.

    {command} CONFIG [--teacher CONFIG] [--filter 'neck.**'] [--depth N]

Every row is a module that ran: its path (what a term's `student=` or `teacher=` takes), the shape
of its output, its stride (input size / map size) and how often one training step calls it. With a
teacher, rows of one path are joined and marked:

    =   same shape: every loss fits
    ~   same size, other channels: a 1x1 connector is added
    !   other size: pick another pair, or resize='bilinear' in the term
"""
DEFAULT_DEPTH = dict(backbone=2, neck=4)


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'inspect_model.py', prog)
    parser.add_argument('config', help="the student's config: a path or 'package::path'")
    parser.add_argument('--teacher', metavar='CONFIG', help="the teacher's config")
    parser.add_argument(
        '--filter',
        metavar='PATTERN',
        help="show only these paths; '*' is one part of a path, '**' any number",
    )
    parser.add_argument(
        '--depth',
        type=int,
        metavar='N',
        help='show paths of up to N parts (default: backbone 2, neck 4, others 3)',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the probe image (default: of the student's pipeline where all its images "
        'have one size, else 256 256)',
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    add_debug_argument(parser)
    return parser.parse_args(argv)


def load_model(config: str, role: str) -> tuple[nn.Module, Any]:
    """The model of a config, with random weights, and the config of its training data."""
    loaded = load_model_config(config, role=role)
    return build_model(loaded), training_data(loaded)


def pair_rows(student: Sequence[Place], teacher: Sequence[Place] | None) -> list[Pair]:
    """Joins the rows of both models by path: the student's, then what only the teacher has."""
    others = {row.path: row for row in teacher or ()}
    pairs = [Pair(row.path, row, others.pop(row.path, None)) for row in student]
    return pairs + [Pair(path, None, row) for path, row in others.items()]


def select(pairs: Sequence[Pair], pattern: str | None, depth: int | None) -> list[Pair]:
    """Applies --filter and --depth. A filter alone lifts the default depth."""
    regex = None
    if pattern is not None:
        regex = re.compile(re.escape(pattern).replace(r'\*\*', '.*').replace(r'\*', '[^.]*'))

    def wanted(path: str) -> bool:
        if regex is not None and not regex.fullmatch(path):
            return False
        limit = depth
        if limit is None and pattern is None:
            limit = DEFAULT_DEPTH.get(path.split('.')[0], 3)
        return limit is None or path.count('.') < limit

    return [pair for pair in pairs if wanted(pair.path)]


def fitting_recipes(
    student: nn.Module, teacher: nn.Module, size: Sequence[int] | None = None
) -> list[dict]:
    """What each recipe would do with this pair, or why it cannot."""
    found = []
    for name in recipes.names(student):
        try:
            choice = recipes.choose(name, student, teacher, size=size)
            (term,) = choice.terms
            found.append(
                dict(
                    recipe=name,
                    student=term['student'],
                    teacher=term.get('teacher', term['student']),
                    weight=term['weight'],
                    published=next(iter(choice.published.values())),
                    loss=term['loss'],
                    source=recipes.source(name, student),
                )
            )
        except ValueError as error:
            reason = _missing_view(name, student, teacher) or str(error)
            found.append(dict(recipe=name, error=reason))
    return found


def _missing_view(name: str, student: nn.Module, teacher: nn.Module) -> str | None:
    """In a few words that a model lacks what the recipe reads, such as masks; None if it does not.

    The error of ``make_view`` tells how to write a view, which a list of recipes need not.
    """
    if name not in RECIPES:
        return None
    view = RECIPES[name].view
    for role, model in (('student', student), ('teacher', teacher)):
        if view not in fitting(model):
            return f'the {role} has no {view}'
    return None


def fitting_views(model: nn.Module) -> list[dict]:
    """What the views that fit this model read: one entry per view."""
    found = []
    for name in view_names():
        with contextlib.suppress(TapError):
            view = make_logit_view(name, model)
            if view.teacher_only:  # a teacher's only
                continue
            specs = view.specs(model)
            unit = 'classes' if view.of_classes else 'columns'
            unit = 'sides of a box' if view.rows_are == 'boxes' else unit
            heads = [dict(dataclasses.asdict(spec), unit=unit) for spec in specs]
            found.append(dict(view=name, heads=heads))
    return found


def takes_detections(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether ``teacher='detections'`` is open to this pair."""
    try:
        own = make_logit_view('cls_logits', student)
        make_logit_view('detections', teacher).check_pair(own, (student, teacher))
    except TapError:
        return False
    return True


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Prints what the command line asks for; ``prog`` is what the user has called."""
    args = parse_args(argv, prog)
    with one_line_errors(args.debug):
        inspect(args)


def inspect(args: argparse.Namespace) -> None:
    """Prints what the command line asks for."""
    if args.depth is not None and args.depth < 1:
        raise UsageError(f'--depth is at least 1, not {args.depth}.')
    # Packages print while they are imported; standard output is for the table or the JSON alone.
    with contextlib.redirect_stdout(sys.stderr):
        student, data = load_model(args.config, 'student')
        teacher = None if args.teacher is None else load_model(args.teacher, 'teacher')[0]
        size = image_size(student, data) if args.size is None else tuple(args.size)
        all_pairs = pair_rows(
            survey(student, probe_size=size),
            survey(teacher, probe_size=size) if teacher is not None else None,
        )
    pairs = select(all_pairs, args.filter, args.depth)
    if not pairs:
        first = sorted({p.path.split('.')[0] for p in all_pairs})
        options = ('--filter', args.filter), ('--depth', args.depth)
        asked = [f'{flag} {value}' for flag, value in options if value is not None]
        raise UsageError(
            f'{" with ".join(asked)} matches none of the {len(all_pairs)} places. '
            f'They begin with {", ".join(first)}; '
            "'*' stands for one part of a path, '**' for any number."
        )
    partner = teacher if teacher is not None else student  # a teacher of the same family
    found = fitting_recipes(student, partner, size)
    views = fitting_views(student)
    teacher_views = [] if teacher is None else fitting_views(teacher)
    detections = takes_detections(student, partner)
    console = Console()
    if args.json:
        text = as_json(
            pairs, views=views, teacher_views=teacher_views, detections=detections, recipes=found
        )
        console.file.write(text + '\n')
        return
    show_table(console, pairs, with_teacher=teacher is not None)
    hidden = len(all_pairs) - len(pairs)
    if hidden:
        console.print(
            f'({hidden} more places: --depth N or --filter PATTERN shows them)', highlight=False
        )
    show_views(console, 'student', views)
    show_views(console, 'teacher', teacher_views)
    if detections:
        console.print(
            "  (a teacher may also be read by its boxes: teacher='detections')", highlight=False
        )
    show_recipes(console, found, with_teacher=teacher is not None)
