"""Pairs for the doctor: trained once a session, in seconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import examined_pairs as pairs
import pytest
import torch
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True, scope='session')
def quiet():
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('CRITICAL')
    yield
    logger.setLevel(level)


@pytest.fixture(scope='session')
def classifiers(tmp_path_factory, quiet) -> SimpleNamespace:
    """A good teacher, a weak one, a student, and random weights; ``changed`` makes other files."""
    folder = tmp_path_factory.mktemp('classifiers')
    student, teacher = pairs.classifier(3, 80), pairs.classifier(16)
    made = SimpleNamespace(
        student_config=student,
        teacher_config=teacher,
        teacher=pairs.train(teacher, 80, folder / 'teacher.pth', 0.1),
        weak=pairs.train(teacher, 16, folder / 'weak.pth', 0.05),
        student=pairs.train(student, 25, folder / 'student.pth', 0.05),
        random=pairs.train(teacher, 0, folder / 'random.pth', 0.1, seed=7),
    )
    made.changed = _changing(made.teacher, folder)
    return made


def _changing(file: Path, folder: Path):
    """Gives a function that saves another version of a checkpoint."""

    def changed(name: str, change=lambda state: None, classes=pairs.CLASSES) -> Path:
        content = torch.load(file, weights_only=True)
        change(content['state_dict'])
        content['meta']['dataset_meta']['classes'] = tuple(classes)
        torch.save(content, folder / name)
        return folder / name

    return changed
