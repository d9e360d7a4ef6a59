"""What the doctor answers about a run before it is made, to be compared with what became of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmkd_plugin.cli.doctor import diagnose
from mmkd_plugin.diagnosis import verdict
from mmkd_plugin.diagnosis.examine import Options


def rule() -> dict[str, str]:
    """Which rule gives the answers."""
    file = Path(verdict.__file__)
    return dict(file=file.name, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def answer(cfg: Config, student_checkpoint: Path) -> dict[str, Any]:
    """The verdict on one config, and what it is made from.

    Args:
        cfg: of the run.
        student_checkpoint: the weights of its student, trained alone.
    """
    report = diagnose(cfg, Options(student_checkpoint=str(student_checkpoint))).as_dict()
    return dict(
        answer=report['verdict']['answer'],
        because=report['verdict']['because'],
        codes=[f'{f["code"]} ({f["where"]})' for f in report['findings']],
        terms={
            term: {key: numbers[key] for key in ('weight', 'gradient_ratio', 'cosine')}
            for term, numbers in report['terms'].items()
        },
        seen=dict(teacher=report['teacher']['metrics'], student=report['student']['metrics']),
    )
