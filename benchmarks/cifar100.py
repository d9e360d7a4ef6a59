#!/usr/bin/env python
"""The CIFAR-100 benchmark: 13 pairs of teacher and student, every method, beside published results.

    python benchmarks/cifar100.py --pairs resnet56_resnet20 --jobs 4 --amp bfloat16
    python benchmarks/cifar100.py --fast --methods student kd dkd      # a quarter of the schedule

``CIFAR100_ROOT`` names the folder that holds ``cifar-100-python`` (default ``data/cifar100``). All
options are those of ``classification.py``, and the ones below.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # started as a script

from benchmarks.classification import ClassificationStudy, build_parser, finish  # noqa: E402
from benchmarks.cls_methods import BENCHMARKS  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(__doc__)
    parser.add_argument(
        '--fast',
        action='store_true',
        help='60 epochs, twice the batch and learning rate: to try things, reproduces nothing',
    )
    parser.add_argument(
        '--any-row-order',
        action='store_true',
        help='accept the images in another row order than the official files (no checksum)',
    )
    args = parser.parse_args(argv)
    os.chdir(ROOT)
    args.dataset = 'cifar100'
    if args.any_row_order:
        splits = ('train', 'val', 'test')
        args.options = {f'{split}_dataloader.dataset.check_md5': False for split in splits}
    args = finish(args, argv, 'benchmarks/cifar100.py')
    return min(ClassificationStudy(args, BENCHMARKS['cifar100']).run(), 1)


if __name__ == '__main__':
    sys.exit(main())
