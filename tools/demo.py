"""Train teacher, student and distilled student. The same as `mmkd demo`, but in the checkout."""

import sys
from functools import partial
from pathlib import Path

from _start import load

ROOT = Path(__file__).resolve().parents[1]
main = partial(load('demo'), home=ROOT if (ROOT / 'mmkd_plugin').is_dir() else None)

if __name__ == '__main__':
    sys.exit(main())
