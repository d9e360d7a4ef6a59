"""Imports run one way: what stands lower in the table below never imports what stands above it."""

from __future__ import annotations

import ast
import itertools
import sys
from pathlib import Path

import pytest

import mmkd_plugin

ROOT = Path(mmkd_plugin.__file__).parent
PACKAGE = ROOT.name
# From the ground upwards; parts of one row do not import each other.
LAYERS = (
    ('checks', 'compat', 'errors', 'files', 'functional', 'rng'),
    ('registry', 'images', 'weights'),
    ('losses', 'model_config', 'taps', 'optim', 'evaluation', 'visualization'),
    ('class_map',),
    ('checkpoints', 'views'),
    ('datasets',),
    ('models', 'saving', 'teacher'),
    ('terms',),
    ('distiller', 'recipes'),
    ('attachment',),
    ('hooks',),
    ('editing',),
    ('diagnosis',),
    ('report',),
    ('cli',),
    ('__main__',),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
MODULES = {
    '.'.join((PACKAGE, *path.relative_to(ROOT).with_suffix('').parts)).removesuffix(
        '.__init__'
    ): path
    for path in ROOT.rglob('*.py')
}


def imported(module: str) -> set[str]:
    """Modules of the package that a module imports, in functions and for types, too."""
    path, found = MODULES[module], set()
    home = module.split('.') if path.name == '__init__.py' else module.split('.')[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split('.')[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            source = '.'.join([*base, *([node.module] if node.module else [])])
            if source.split('.')[0] == PACKAGE:
                names = (f'{source}.{name.name}' for name in node.names)
                found |= {name if name in MODULES else source for name in names}
    return found - {module}


def part(module: str) -> str:
    return module.split('.')[1] if '.' in module else ''


@pytest.mark.parametrize('module', sorted(MODULES))
def test_no_arrow_runs_back_up(module: str):
    if not part(module):  # the package itself is the front door
        return
    for other in imported(module):
        if part(other) == part(module):
            continue
        assert part(other), f'{module} imports the package as a whole'
        assert RANK[part(other)] < RANK[part(module)], f'{module} imports {other}'


def test_no_module_imports_itself_by_a_detour():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' -> '.join((*path, module))
        if module in done:
            return
        for other in imported(module):
            visit(other, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_docs_draw_the_arrows_that_there_are():
    page = (Path(__file__).parents[1] / 'docs' / 'how-it-works.md').read_text()
    drawing = page.split('## Who may import whom')[1].split('```')[1]
    drawn = set()
    for line in drawing.strip().splitlines():
        groups = [group.strip().split(', ') for group in line.split('─►')]
        for lower, upper in itertools.pairwise(groups):
            drawn |= {(a, b) for a in lower for b in upper}
    shown = {name for arrow in drawn for name in arrow}
    real = {(part(other), part(module)) for module in MODULES for other in imported(module)}
    assert drawn <= real, 'nobody imports along these arrows'
    reached = set(drawn)
    for via in shown:
        reached |= {(a, d) for a, b in reached for c, d in reached if b == c == via}
    missing = {(a, b) for a, b in real - reached if a != b and {a, b} <= shown}
    assert not missing, 'no arrows lead from these to those that import them'


def test_the_maths_imports_torch_and_the_standard_library_only():
    for path in (ROOT / 'functional').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [name.name for name in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2, f'{path.name} leaves its folder'
                names = [] if node.level else [node.module]
            else:
                continue
            for name in names:
                top = name.split('.')[0]
                assert top == 'torch' or top in sys.stdlib_module_names, f'{path.name}: {name}'


def test_few_files_lie_loose():
    loose = [path.name for path in ROOT.glob('*.py') if not path.name.startswith('__')]
    assert len(loose) <= 10, loose
    assert set(RANK) == {part(module) for module in MODULES if part(module)}
