"""The tables that ``mmkd inspect`` prints."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ..hooks.plan_table import tap_text
from ..taps.tappable import Place
from ..weights.wishes import wish_text

NARROW = 100  # columns below which the two models share one column


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


def show_views(console: Console, role: str, found: Sequence[dict]) -> None:
    """Prints the views of the student or the teacher, as logit terms name them."""
    if not found:
        return
    console.print(f"\n[bold]Views of the {role}'s logits[/bold] ({role}='NAME' in a term)")
    for item in found:
        heads = [
            f'{head["label"]}: {head["num_classes"]} {head["unit"]}'
            + ('' if head['activation'] == 'none' else f', {head["activation"]}')
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
        cells: list[tuple[str, ...]] = [_cells(side) for side in sides]
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
    console.print(f'\n[bold]Recipes for {partner}[/bold] (mmkd train --recipe NAME)')
    if all('error' in item for item in found):  # one reason, told once
        console.print(f'  none fits: {found[0]["error"]}', markup=False, highlight=False)
        return
    reasons: dict[str, list[dict]] = {}
    for item in found:
        if 'error' in item:  # told once for the recipes that share it
            reason = item['error'].replace(repr(item['recipe']), '')
            reasons.setdefault(reason, []).append(item)
        else:
            taps = tap_text(item['student'])
            if item['teacher'] != item['student']:
                taps += f' <- {tap_text(item["teacher"])}'
            weight = f'weight {wish_text(item["weight"])}'
            if item['weight'] != item['published']:
                weight += f', published {item["published"]:g}'
            console.print(
                f'  {item["recipe"]:<12} {taps}  {weight}  ({item["source"]})',
                markup=False,
                highlight=False,
            )
    for items in reasons.values():
        names = ', '.join(item['recipe'] for item in items)
        verb = 'does' if len(items) == 1 else 'do'
        console.print(f'  {names} {verb} not fit: {items[0]["error"]}', markup=False)


def as_json(pairs: Sequence[Pair], **found: Any) -> str:
    def side(place: Place | None) -> dict | None:
        return None if place is None else dataclasses.asdict(place)

    places = [
        dict(path=p.path, mark=p.mark, student=side(p.student), teacher=side(p.teacher))
        for p in pairs
    ]
    return json.dumps(dict(places=places, **found), indent=1)
