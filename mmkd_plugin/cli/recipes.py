"""``mmkd recipes``: the methods, each with a line, its weights and their sources."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import recipes
from ..checks import nearest
from ..recipes.table import rows
from .errors import UsageError
from .running import new_parser

DESCRIPTION = """\
List the recipes: what a method does, the weight of its term, and where its numbers come from.

The weight is the default of `mmkd train --recipe NAME`; "published" is the number of the method's
own configs where it is another. `mmkd inspect CONFIG --teacher CONFIG` tells which fit a pair.
"""
HEADER = ('models', 'weight', 'published', 'source')


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    parser = new_parser(DESCRIPTION, 'recipes', prog)
    parser.add_argument('names', nargs='*', metavar='NAME', help='only these (default: all)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Prints the list."""
    args = parse_args(argv, prog)
    for name in args.names:
        if name not in recipes.names():
            raise UsageError(f'there is no recipe {name!r}; {nearest(name, recipes.names())}.')
    show(args.names or recipes.names(), Console())


def show(names: Sequence[str], console: Console) -> None:
    """The list as tables, which fit the terminal."""
    for name in names:
        console.print(Text.assemble((name, 'bold'), f'  {recipes.describe(name)}'))
        table = Table(box=None, pad_edge=False, padding=(0, 1), show_header=name == names[0])
        table.add_column('', width=2)
        for title, ratio in zip(HEADER, (3, 2, 2, 5), strict=True):
            table.add_column(title, ratio=ratio, overflow='fold', header_style='dim')
        table.expand = True
        for row in rows(name):
            published = '' if row.weight == row.published else row.published
            cells = [', '.join(row.models), row.weight, published, row.source]
            table.add_row('', *map(Text, cells))
        console.print(table)
