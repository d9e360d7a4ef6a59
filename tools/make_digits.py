"""Make the digits set by hand; training makes it on first use by itself.

python tools/make_digits.py --out data/digits --train 800 --val 200 --image-size 128
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from mmkd_plugin.datasets import DigitsSpec, ensure_digits


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', default='data/digits', help='folder of the set (%(default)s)')
    parser.add_argument('--force', action='store_true', help='replace a set of other settings')
    for field in fields(DigitsSpec):
        pair = isinstance(field.default, tuple)
        kind = type(field.default[0] if pair else field.default)
        parser.add_argument(
            f'--{field.name.replace("_", "-")}',
            type=kind,
            nargs=2 if pair else None,
            default=field.default,
            help='default: %(default)s',
        )
    args = vars(parser.parse_args(argv))
    out, force = Path(args.pop('out')), args.pop('force')
    start = time.perf_counter()
    try:
        ensure_digits(out, DigitsSpec.from_dict(args), overwrite=force)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    for split in ('train', 'val'):
        with open(out / 'annotations' / f'{split}.json', encoding='utf-8') as file:
            content = json.load(file)
        print(f'{split}: {len(content["images"])} images, {len(content["annotations"])} digits')
    print(f'{out} is ready ({time.perf_counter() - start:.1f} s)')
    return 0


if __name__ == '__main__':
    sys.exit(main())
