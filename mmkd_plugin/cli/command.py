"""The command ``mmkd``: names its parts and starts one of them.

This module is also run by itself (``mmkd.py`` beside the package), so it imports the standard
library only, until it is known which command is meant.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata

# The command and the module of this folder that it is.
COMMANDS = {
    'train': ('train', 'train a model, distilled or plain'),
    'test': ('test', 'test a checkpoint; of a distilled one no teacher is needed'),
    'doctor': (
        'doctor',
        'say before training what is wrong with a pair',
    ),
    'inspect': ('inspect_model', 'list the places of a model that can be distilled'),
    'recipes': ('recipes', 'list the methods with their weights and sources'),
    'compare': ('compare', 'compare finished runs: is the gain real, and where is it from'),
    'demo': ('demo', 'train teacher, student and distilled student on handwritten digits'),
}
EXAMPLES = """\
mmkd train STUDENT.py --teacher TEACHER.py --teacher-checkpoint FILE [--recipe gdd]
  mmkd train mmkd_plugin::classification/digits/resnet14_digits.py
  torchrun --nproc_per_node=2 -m mmkd_plugin train CONFIG --launcher pytorch"""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs ``mmkd NAME ...``, by default of the words of this process; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words.pop(0) if words else '--help'
    if name == 'help' and words:  # mmkd help train
        name, words = words[0], ['--help']
    if name in ('-h', '--help', 'help'):
        print(overview())
        return 0
    if name == '--version':
        print(f'mmkd_plugin {version()}')
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f'the nearest is {near[0]!r}' if near else f'there are {", ".join(COMMANDS)}'
        print(f'error: mmkd has no command {name[:100]!r}; {hint}.', file=sys.stderr)
        return 2
    return load(COMMANDS[name][0])(words, f'mmkd {name}')


def load(module: str) -> Callable:
    """The ``main`` of a module of this folder.

    Raises:
        SystemExit: an environment that the package cannot be imported in, in one sentence.
    """
    try:
        import_module('mmkd_plugin')
    except ImportError as error:
        raise SystemExit(f'error: {error}') from None
    return import_module(f'mmkd_plugin.cli.{module}').main


def overview() -> str:
    """What ``mmkd`` prints when nothing is asked of it."""
    lines = [f'  {name:<9}{summary}' for name, (_, summary) in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: mmkd COMMAND ...',
            '',
            'Knowledge distillation for models of MMEngine: any teacher for any student.',
            '',
            *lines,
            '',
            '`mmkd COMMAND --help` tells the options of a command. Examples:',
            '',
            f'  {EXAMPLES}',
        ]
    )


def version() -> str:
    """The version that is installed; that of a checkout which is not takes an import."""
    try:
        return metadata.version('mmkd_plugin')
    except metadata.PackageNotFoundError:
        return import_module('mmkd_plugin').__version__
