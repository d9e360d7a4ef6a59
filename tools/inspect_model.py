"""List the places of a model that can be tapped, beside those of a teacher.

    python tools/inspect_model.py CONFIG [--teacher CONFIG] [--filter 'neck.**'] [--depth N]

Every row is a module that ran: its path (what a term's `student=` or `teacher=` takes), the shape
of its output, its stride (input size / map size) and how often one training step calls it. With a
teacher, rows of one path are joined and marked:

    =   same shape: every loss fits
    ~   same size, other channels: a 1x1 connector is added
    !   other size: pick another pair, or resize='bilinear' in the term
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _common import UsageError, find_config
from rich.console import Console
from rich.table import Table
from torch import nn

from mmkd_plugin import recipes
from mmkd_plugin.recipes.detection import RECIPES
from mmkd_plugin.survey import Place, survey
from mmkd_plugin.taps import TapError
from mmkd_plugin.teacher import build_model, load_model_config
from mmkd_plugin.views import fitting, make_view, view_names

NARROW = 100  # columns below which the two models share one column
DEFAULT_DEPTH = dict(backbone=2, neck=4)


@dataclass
class Pair:
    """One path, with its row in the student and in the teacher (either may be missing)."""

    path: str
    student: Place | None
    teacher: Place | None

    @property
    def mark(self) -> str:
        if self.student is None or self.teacher is None:
            return ''
        student, teacher = self.student.shapes, self.teacher.shapes
        if student == teacher:
            return '='
        alike = len(student) == len(teacher) and all(
            len(s) == len(t) == 4 and s[2:] == t[2:] for s, t in zip(student, teacher, strict=True)
        )
        return '~' if alike else '!'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        default=(256, 256),
        metavar=('H', 'W'),
        help='size of the probe image (default 256 256)',
    )
    parser.add_argument('--json', action='store_true', help='print JSON instead of a table')
    return parser.parse_args(argv)


def load_model(config: str) -> nn.Module:
    """The model of a config, with random weights."""
    path = find_config(config)
    try:
        loaded = load_model_config(str(path))
    except ValueError as error:
        raise UsageError(f'{config}: {error}') from None
    return build_model(loaded)


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


def fitting_recipes(student: nn.Module, teacher: nn.Module) -> list[dict]:
    """What each recipe would do with this pair, or why it cannot."""
    found = []
    for name in recipes.names(student):
        try:
            term = recipes.resolve(name, student, teacher)['terms'][0]
            found.append(
                dict(
                    recipe=name,
                    student=term['student'],
                    teacher=term.get('teacher', term['student']),
                    weight=term['weight'],
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
            view = make_view(name, model)
            if view.follows:  # a teacher's only
                continue
            specs = view.specs(model)
            unit = 'classes' if view.of_classes else 'columns'
            heads = [dict(dataclasses.asdict(spec), unit=unit) for spec in specs]
            found.append(dict(view=name, heads=heads))
    return found


def takes_detections(student: nn.Module, teacher: nn.Module) -> bool:
    """Whether ``teacher='detections'`` is open to this pair."""
    try:
        own = make_view('cls_logits', student)
        make_view('detections', teacher).check_pair(own, (student, teacher))
    except TapError:
        return False
    return True


def show_views(console: Console, role: str, found: Sequence[dict]) -> None:
    """Prints the views of the student or the teacher, as logit terms name them."""
    if not found:
        return
    console.print(f"\n[bold]Views of the {role}'s logits[/bold] ({role}='NAME' in a term)")
    for item in found:
        heads = [
            f'{head["label"]}: {head["num_classes"]} {head["unit"]}, {head["activation"]}'
            + (' with background' if head['background'] else '')
            + (f', {head["priors"]} at each position' if head['priors'] > 1 else '')
            for head in item['heads']
        ]
        more = f' (and {len(heads) - 1} more)' if len(heads) > 1 else ''
        console.print(f'  {item["view"]:<12} {heads[0]}{more}', markup=False, highlight=False)


def show_table(console: Console, pairs: Sequence[Pair], with_teacher: bool) -> None:
    """Prints the rows; on a narrow terminal student and teacher stand below each other."""
    wide = console.width >= NARROW or not with_teacher
    table = Table(box=None, pad_edge=False, header_style='bold', padding=(0, 1))
    table.add_column('path', overflow='fold', min_width=20)
    if with_teacher:
        table.add_column('', no_wrap=True)
    for role in ('student', 'teacher') if with_teacher and wide else ('',):
        table.add_column(f'{role} shape'.strip(), overflow='fold')
        table.add_column('stride', justify='right')
        table.add_column('calls', justify='right')
    if console.width >= NARROW:
        table.add_column('kind', overflow='fold')
    for pair in pairs:
        sides = [pair.student, pair.teacher] if with_teacher else [pair.student]
        cells = [_cells(side) for side in sides]
        if not wide:
            cells = [tuple('\n'.join(parts) for parts in zip(*cells, strict=True))]
        mark = [pair.mark] if with_teacher else []
        kinds = dict.fromkeys(side.kind for side in sides if side is not None)
        kind = [' / '.join(kinds)] if console.width >= NARROW else []
        table.add_row(pair.path, *mark, *[c for side in cells for c in side], *kind)
    console.print(table)


def _cells(place: Place | None) -> tuple[str, str, str]:
    """Shape, stride and calls as text; several levels are given by the first and the last."""
    if place is None:
        return '-', '-', '-'
    first, last = place.shapes[0], place.shapes[-1]
    shape, stride = _shape_text(first), '' if place.stride is None else f'{place.stride:g}'
    if len(place.shapes) > 1:
        shape += '' if first == last else f' .. {_shape_text(last)}'
        shape += f' ({len(place.shapes)} levels)'
        if first != last and place.stride is not None and len(last) == 4:
            stride += f'..{place.stride * first[2] / last[2]:g}'
    return shape, stride, str(place.calls)


def _shape_text(shape: Sequence[int]) -> str:
    return 'x'.join(str(n) for n in shape) or 'scalar'


def show_recipes(console: Console, found: Sequence[dict], with_teacher: bool) -> None:
    partner = 'this pair' if with_teacher else 'this student and a teacher of the same family'
    console.print(f'\n[bold]Recipes for {partner}[/bold] (tools/train.py --recipe NAME)')
    if all('error' in item for item in found):  # one reason, told once
        console.print(f'  none fits: {found[0]["error"]}', markup=False, highlight=False)
        return
    reasons: dict[str, list[dict]] = {}
    for item in found:
        if 'error' in item:  # told once for the recipes that share it
            reason = item['error'].replace(repr(item['recipe']), '')
            reasons.setdefault(reason, []).append(item)
        else:
            taps = _tap_text(item['student'])
            if item['teacher'] != item['student']:
                taps += f' <- {_tap_text(item["teacher"])}'
            console.print(
                f'  {item["recipe"]:<12} {taps}  weight {item["weight"]:g}  ({item["source"]})',
                markup=False,
                highlight=False,
            )
    for items in reasons.values():
        names = ', '.join(item['recipe'] for item in items)
        verb = 'does' if len(items) == 1 else 'do'
        console.print(f'  {names} {verb} not fit: {items[0]["error"]}', markup=False)


def _tap_text(tap: Any) -> str:
    return tap if isinstance(tap, str) else f'{tap["path"]} (levels {tap["levels"]})'


def as_json(pairs: Sequence[Pair], **found: Any) -> str:
    def side(place: Place | None) -> dict | None:
        return None if place is None else dataclasses.asdict(place)

    places = [
        dict(path=p.path, mark=p.mark, student=side(p.student), teacher=side(p.teacher))
        for p in pairs
    ]
    return json.dumps(dict(places=places, **found), indent=1)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.depth is not None and args.depth < 1:
        raise UsageError(f'--depth is at least 1, not {args.depth}.')
    size = tuple(args.size)
    # Packages print while they are imported; standard output is for the table or the JSON alone.
    with contextlib.redirect_stdout(sys.stderr):
        student = load_model(args.config)
        teacher = load_model(args.teacher) if args.teacher else None
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
    found = fitting_recipes(student, partner)
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


if __name__ == '__main__':
    main()
