"""The command ``mmkd``; ``python -m mmkd_plugin`` is the same.

It stands beside the package and does not import it: that imports torch, which takes seconds that
``mmkd --help`` and a misspelt command can do without.
"""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Starts ``mmkd_plugin/cli/command.py``."""
    package = Path(find_spec('mmkd_plugin').origin).parent
    return runpy.run_path(str(package / 'cli' / 'command.py'))['main']()


if __name__ == '__main__':
    sys.exit(main())
