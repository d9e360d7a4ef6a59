"""Every code block of README, CONTRIBUTING and docs/ that can runs here; links lead somewhere.

A block of Python defines terms, a hook or a call: it is attached to tiny models and trained for a
step in each of five epochs. A command is read by the parser of its own script, its configs are
found, and those of the digits' classifiers are run.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from region_batches import detector, sample
from torch import nn

import mmkd_plugin
from mmkd_plugin import recipes
from mmkd_plugin.checks import arguments
from mmkd_plugin.cli import command
from mmkd_plugin.hooks import DistillHook
from mmkd_plugin.hooks.entries import distill_hooks
from mmkd_plugin.model_config import find_config, load_model_config
from mmkd_plugin.teacher import build_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
WITH_LINKS = [
    *PAGES,
    ROOT / 'CHANGELOG.md',
    ROOT / 'configs' / 'README.md',
    ROOT / 'benchmarks' / 'README.md',
]


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r'^```(\w+)\n(.*?)^```$', text, re.M | re.S):
            line = text[: match.start()].count('\n') + 1
            found.append(Block(page.relative_to(ROOT).as_posix(), line, *match.groups()))
    return [block for block in found if block.language == language]


# -- Python --------------------------------------------------------------------------------------

# Blocks that define no terms: words that only they hold, and why they are not run here.
ELSEWHERE = {
    'class OneMapHead(GFLHead)': 'run by tests/views/test_own_head.py',
    "_base_ = ['../_base_/datasets/digits_detection.py']": 'a path inside configs/, built below',
    'class_map=dict(person=': 'no terms; its keys are checked below',
    'inputs=dict(mean=[0.485': 'no terms; what it says is run by tests/test_inputs.py',
    'inputs = dict(mean=[0.485': 'run by tests/test_inputs.py',
    "_base_ = 'mm": 'run by tests/packages/test_your_project.py',
    'import paired_interval': 'no terms; run by tests/diagnosis/test_intervals.py',
    'cfg = mmkd_plugin.distill(': 'a call like it is run by tests/test_weights_wishes.py',
}
# What a block is about where it is not GFL taught by GFL: words in it -> student, teacher.
PAIRS = {
    "student='mask_logits', teacher='detections'": ('Mask R-CNN', 'SOLO'),
    "teacher='detections'": ('GFL', 'Faster R-CNN'),
    'levels=[1, 2, 3, 4]), teacher=dict(path': ('Faster R-CNN', 'RetinaNet'),
    'levels=[0, 1, 2, 3]), teacher=dict(path': ('GFL', 'Faster R-CNN'),
    'classification/cifar100/resnet56': ('classifier', 'classifier'),
    "dict(loss=dict(type='DKDLoss'": ('classifier', 'classifier'),
}


def elsewhere(block: Block) -> bool:
    return any(words in block.text for words in ELSEWHERE)


PYTHON = blocks('python')


@cache
def names_of(block: Block) -> dict:
    """What a block of config defines; an expression alone is a term."""
    try:
        return dict(terms=[eval(block.text, {})])
    except SyntaxError:
        names: dict = {}
        exec(block.text, names)
        return names


def pair_of(block: Block) -> tuple[nn.Module, nn.Module]:
    student, teacher = next((p for words, p in PAIRS.items() if words in block.text), ('GFL',) * 2)
    if student == 'classifier':
        config = load_model_config('mmkd_plugin::classification/digits/resnet8-narrow_digits.py')
        return build_model(config).train(), build_model(config)
    return detector(student), detector(teacher, width=24, seed=1)


def batch_of(model: nn.Module) -> tuple:
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        return images, [sample(), sample()]
    return images[..., :16, :16], dict(gt_label=torch.tensor([1, 3]))


@pytest.mark.parametrize(
    'block', [b for b in PYTHON if not elsewhere(b) and 'attach(' not in b.text], ids=str
)
def test_terms_of_the_docs_train(block):
    """In five epochs, for a term of its own may begin late: each is logged beside the losses."""
    defined = names_of(block)
    student, teacher = pair_of(block)
    hook = next(iter(defined.get('custom_hooks', [])), {})
    assert hook == {} or distill_hooks(defined) == [hook]
    plan = dict(terms=defined.get('terms') or hook.get('terms'))
    if plan['terms'] is None:
        plan = recipes.resolve(hook['recipe'], student, teacher)
    own = set(student(*batch_of(student), mode='loss'))
    distiller = mmkd_plugin.attach(student, teacher, **plan, probe_size=(128, 128))
    seen: set[str] = set()
    for epoch in range(5):
        distiller.set_progress(10 * epoch, epoch)
        losses = student(*batch_of(student), mode='loss')
        assert own <= set(losses)
        seen |= set(losses) - own
    assert {f'loss_{term.name}' for term in distiller.terms} <= seen


def test_every_key_of_the_hook_is_in_the_user_guide():
    guide = (ROOT / 'docs' / 'usage.md').read_text()
    missing = {key for key in arguments(DistillHook) if f'| `{key}` |' not in guide}
    assert missing == {'terms', 'recipe'}  # the sentence above the table has them


@pytest.mark.parametrize(
    'block', [b for b in PYTHON if not elsewhere(b) and 'attach(' in b.text], ids=str
)
def test_calls_of_the_docs_run(block):
    student, teacher = detector('GFL'), detector('GFL', width=24, seed=1)
    inputs, data_samples = batch_of(student)
    names = dict(student=student, teacher=teacher, torch=torch)
    names.update(inputs=inputs, data_samples=data_samples)
    exec(block.text, names)
    assert names['losses']['loss_gdd'] > 0 and not hasattr(student, 'distiller')


def test_the_blocks_that_are_not_run_here_are_known():
    listed = [block for block in PYTHON if elsewhere(block)]
    assert {words for words in ELSEWHERE if any(words in b.text for b in listed)} == set(ELSEWHERE)
    (maps,) = [block for block in listed if 'class_map=dict(person=' in block.text]
    for line in maps.text.splitlines():
        teacher = eval(f'dict({line.split("#")[0]})', {})['teacher']
        assert set(teacher) <= set(mmkd_plugin.teacher.TEACHER_KEYS)
    (base,) = [block for block in listed if "_base_ = ['../_base_" in block.text]
    for path in re.findall(r"'(\S+\.py)'", base.text):
        assert (ROOT / 'configs' / 'demo' / path).is_file()


# -- commands ------------------------------------------------------------------------------------

# Words that stand for a file of the reader's.
PLACEHOLDERS = re.compile(r'^(?:[A-Z_]+|(?:my|your)_\w+\.py|teacher_config\.py)$')
# Commands whose script has no parser of this package: what is checked of them instead.
OTHERS = (
    'make',
    'pip',
    'pre-commit',
    'source',
    'export',
    'tools/dist_train.sh',
    'tools/dist_test.sh',
)
OTHERS += ('tools/slurm_train.sh', 'torchrun')


class Parsed(Exception):
    """Raised in place of a run, with what the parser has made of the command line."""


def commands() -> list[tuple[str, list[str]]]:
    """Every line of the bash blocks as words, without comments and the brackets of options."""
    found = []
    for block in blocks('bash'):
        for line in block.text.replace('\\\n', ' ').splitlines():
            words = [w.strip('[]') for w in shlex.split(line, comments=True)]
            words = [
                'CONFIG' if w == '...' and words[i - 1][:2] == '--' else w
                for i, w in enumerate(words)
            ]
            words = [w for w in words if w.strip('.')]
            while words and re.match(r'^[A-Z_]+=', words[0]):  # environment
                words.pop(0)
            if words:
                found.append((f'{block} {" ".join(words[:3])}', words))
    return found


COMMANDS = commands()
OF_PYTHON = [(name, words) for name, words in COMMANDS if words[0] == 'python']
OF_MMKD = [(name, words) for name, words in COMMANDS if words[0] == 'mmkd']


@pytest.fixture
def parse(monkeypatch):
    """Runs a script up to its parser; returns what that has read."""
    before = set(sys.modules)

    def call(script: str, arguments: list[str]) -> argparse.Namespace:
        monkeypatch.syspath_prepend(str((ROOT / script).parent))
        monkeypatch.setattr(sys, 'argv', [script, *arguments])
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        return parsed.value.args[0]

    original = argparse.ArgumentParser.parse_args

    def parse_args(self, *args, **kwargs):
        raise Parsed(original(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    yield call
    for name in set(sys.modules) - before:  # tools/ and benchmarks/ have modules of equal names
        if str(getattr(sys.modules[name], '__file__', '')).startswith(
            (f'{ROOT}/tools', f'{ROOT}/bench')
        ):
            del sys.modules[name]


@pytest.mark.parametrize('words', [w for _, w in OF_PYTHON], ids=[n for n, _ in OF_PYTHON])
def test_commands_of_the_docs_are_understood(words, parse):
    """By the parser of their script; and the configs that they name are there."""
    args = parse(words[1], words[2:])
    for name in (getattr(args, 'config', None), getattr(args, 'teacher', None)):
        if not isinstance(name, str) or PLACEHOLDERS.match(name):
            continue
        package = name.partition('::')[0]
        if '::' in name:
            pytest.importorskip(package)
        assert find_config(name if '::' in name else str(ROOT / name)).is_file()
    if getattr(args, 'recipe', None):
        recipes.describe(args.recipe)


@pytest.mark.parametrize('words', [w for _, w in OF_MMKD], ids=[n for n, _ in OF_MMKD])
def test_commands_of_mmkd_are_understood(words, parse):
    with pytest.raises(Parsed):
        command.main(words[1:])


def test_the_other_commands_are_known():
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M)
    for name, words in COMMANDS:
        if words[0] in ('python', 'mmkd'):
            continue
        assert words[0] in OTHERS, name
        if words[0].startswith('tools/'):
            assert (ROOT / words[0]).is_file()
        if words[0] == 'make':
            assert words[1] in targets


def test_flags_of_the_pages_exist(parse):
    """Those of the table in usage.md, and every `--flag` beside the name of a tool."""
    known: set[str] = set()
    original = argparse.ArgumentParser.add_argument
    with pytest.MonkeyPatch.context() as patch:

        def add(self, *names, **kwargs):
            known.update(names)
            return original(self, *names, **kwargs)

        for kind in (argparse.ArgumentParser, argparse._ArgumentGroup):
            patch.setattr(kind, 'add_argument', add)
        for script, arguments in (('train', ['x']), ('test', ['x', 'y']), ('inspect_model', ['x'])):
            parse(f'tools/{script}.py', arguments)
    table = re.search(r'^\| option of `tools/train.py`.*?\n\n', PAGES_TEXT['usage.md'], re.M | re.S)
    flags = set(re.findall(r'`(--[a-z][\w-]*)', table[0]))
    assert {'--teacher', '--recipe', '--term-options', '--class-map'} <= flags <= known


PAGES_TEXT = {page.name: page.read_text() for page in PAGES}


def test_the_first_commands_of_the_classifiers_train(tmp_path, monkeypatch):
    """The two of the README that need no download, an epoch instead of 80."""
    pytest.importorskip('sklearn')
    names = '/resnet14_digits.py', '/resnet14_resnet8-narrow_digits.py'
    first, second = (next(w for _, w in OF_PYTHON if w[-1].endswith(name)) for name in names)
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    train = runpy.run_path(str(ROOT / first[1]))['main']
    monkeypatch.chdir(tmp_path)
    saved = ['--teacher-checkpoint', 'teacher/epoch_1.pth']
    for words, folder, more in ((first, 'teacher', []), (second, 'student', saved)):
        short = ['train_cfg.max_epochs=1', 'train_dataloader.dataset.num_samples=60']
        names = [f'visualizer.name=docs-{folder}', f'experiment_name=docs-{folder}']
        config = str(ROOT / words[2])
        train([config, '--work-dir', folder, *more, '--cfg-options', *short, *names])
        assert (tmp_path / folder / 'epoch_1.pth').is_file()
    state = torch.load(tmp_path / 'student' / 'epoch_1.pth', weights_only=False)
    assert 'distiller' in state


# -- links ---------------------------------------------------------------------------------------


def slugs(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)
    headings = re.findall(r'^#+ +(.*)$', text, re.M)
    plain = [
        re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).strip().lower() for heading in headings
    ]
    return {re.sub(r'[^\w\- ]', '', heading).replace(' ', '-') for heading in plain}


def test_the_calls_of_how_it_works_are_in_the_files_that_it_names():
    text = (ROOT / 'docs' / 'how-it-works.md').read_text()
    calls = re.findall(r'`([\w/]+\.py)(?:: ([\w.]+))?`', text)
    assert sum(bool(names) for _, names in calls) > 20
    for file, names in calls:
        path = next((p for p in (ROOT / 'mmkd_plugin' / file, ROOT / file) if p.exists()), None)
        assert path, f'there is no {file}'
        for name in filter(None, names.split('.')):
            assert re.search(rf'^ *(?:def|class) {name}\b', path.read_text(), re.M), (file, names)


@pytest.mark.parametrize('page', WITH_LINKS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r'^```.*?^```$', '', page.read_text(), flags=re.M | re.S)
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    for link in links:
        if re.match(r'^(https?|mailto):', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in slugs(target), link
