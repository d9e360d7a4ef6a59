"""tools/train.py and tools/test.py, run as a user runs them: processes on a small digits set."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).resolve().parents[2]
TOOLS = REPO / 'tools'

CONFIG = """
default_scope = 'mmdet'
root = {root!r}
classes = tuple('0123456789')
norm = dict(type='GN', num_groups=4, requires_grad=True)
model = dict(
    type='GFL',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53],
                           std=[58.395, 57.12, 57.375], bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(1, 2, 3),
                  frozen_stages=-1, norm_eval=False, norm_cfg=dict(type='BN'), style='pytorch'),
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels={width}, num_outs=3),
    bbox_head=dict(type='GFLHead', num_classes=10, in_channels={width}, feat_channels={width},
                   stacked_convs=1, norm_cfg=norm, reg_max=8,
                   anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8,
                                         scales_per_octave=1, strides=[8, 16, 32]),
                   loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0),
                   loss_dfl=dict(type='DistributionFocalLoss', loss_weight=0.25),
                   loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
    train_cfg=dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=50, min_bbox_size=0, score_thr=0.0, max_per_img=5,
                  nms=dict(type='nms', iou_threshold=0.6)))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(64, 64), keep_ratio=False)]
dataset = dict(type='CocoDataset', data_root=root, metainfo=dict(classes=classes),
               ann_file='annotations/train.json', data_prefix=dict(img='train/'),
               pipeline=load + [dict(type='PackDetInputs')])
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dataset,
                        sampler=dict(type='InfiniteSampler', shuffle=True))
keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
test_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', data_root=root, metainfo=dict(classes=classes),
                 ann_file='annotations/val.json', data_prefix=dict(img='val/'), test_mode=True,
                 pipeline=load + [dict(type='PackDetInputs', meta_keys=keys)]))
test_evaluator = dict(type='CocoMetric', ann_file=root + '/annotations/val.json', metric='bbox')
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=1000)
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.001, momentum=0.9),
                     clip_grad=dict(max_norm=35))
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
    visualization=dict(type='DetVisualizationHook', interval=1))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
custom_hooks = [dict(type='NumClassCheckHook'), dict(type='EMAHook', momentum=0.1)]
randomness = dict(seed=0)
log_level = 'WARNING'
"""


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs a tool; its output is the message of a failure."""
    variables = dict(os.environ, PYTHONPATH=str(REPO), OMP_NUM_THREADS='1', PYTHON=sys.executable)
    variables.pop('LOCAL_RANK', None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**variables, **env},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done


def run_tool(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return run(sys.executable, TOOLS / name, *arguments, cwd=cwd)


def scalars(work_dir: Path) -> list[dict]:
    """The log records of a run's last start, as written by the local visualisation backend."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def load(path: Path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)


def load_tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return importlib.import_module(f'mmkd_plugin.cli.{name}')


@pytest.fixture(scope='module')
def place(tmp_path_factory: pytest.TempPathFactory, digits_root: Path) -> Path:
    """A folder with a teacher's and a student's config that know nothing of distillation."""
    folder = tmp_path_factory.mktemp('tools')
    (folder / 'teacher.py').write_text(CONFIG.format(root=str(digits_root), width=16))
    (folder / 'student.py').write_text(CONFIG.format(root=str(digits_root), width=8))
    return folder


@pytest.fixture(scope='module')
def teacher(place: Path) -> Path:
    """A plain run through tools/train.py gives the teacher's checkpoint."""
    run_tool('train.py', 'teacher.py', '--work-dir', 'teacher', cwd=place)
    assert not any('gdd' in key for key in scalars(place / 'teacher')[-1])
    return place / 'teacher' / 'iter_2.pth'


TEACHER = ('--teacher', 'teacher.py', '--teacher-checkpoint', 'teacher/iter_2.pth')


@pytest.fixture(scope='module')
def distilled(place: Path, teacher: Path) -> Path:
    """Work dir of the student, distilled by command-line options alone."""
    options = ('--work-dir', 'distilled', '--recipe', 'gdd', '--task-weight', '0.5')
    run_tool('train.py', 'student.py', *options, *TEACHER, cwd=place)
    return place / 'distilled'


def test_the_term_is_trained_and_logged(distilled: Path):
    records = scalars(distilled)[:2]
    assert [r['step'] for r in records] == [1, 2]
    for record in records:
        assert record['loss_gdd'] > 0
        own = sum(v for k, v in record.items() if k.startswith('loss_'))
        assert record['loss'] == pytest.approx(own, rel=1e-4)


def test_joined_recipes_of_features_and_logits(place: Path, teacher: Path):
    options = ('--work-dir', 'joined', '--recipe', 'gdd+kd+kd-bins')
    run_tool('train.py', 'student.py', *options, *TEACHER, cwd=place)
    for record in scalars(place / 'joined')[:2]:
        assert all(record[f'loss_{name}'] > 0 for name in ('gdd', 'kd', 'kd_bins'))
        assert record['kd_rows'] > 0


def test_the_checkpoint_is_the_plain_students(distilled: Path, place: Path):
    from mmkd_plugin.model_config import load_model_config
    from mmkd_plugin.teacher import build_model

    plain = build_model(load_model_config(str(place / 'student.py')))
    checkpoint = load(distilled / 'iter_2.pth')
    assert list(checkpoint['state_dict']) == list(plain.state_dict())
    plain.load_state_dict(checkpoint['state_dict'], strict=True)
    assert 'distiller' in checkpoint


WITHOUT_THE_PACKAGE = """
import sys
sys.modules['mmkd_plugin'] = None
import torch
from mmdet.apis import DetInferencer, init_detector
from mmengine.config import Config
file = sys.argv[1]
DetInferencer(weights=file, device='cpu', show_progress=False)
checkpoint = torch.load(file, map_location='cpu', weights_only=False)
config = Config.fromstring(checkpoint['meta']['cfg'], '.py')
init_detector(config, file, device='cpu')
print('OPENED')
"""


def test_stock_mmdet_opens_the_file(distilled: Path, place: Path):
    """By the config inside it, in a process that cannot import the package."""
    done = run(sys.executable, '-c', WITHOUT_THE_PACKAGE, distilled / 'iter_2.pth', cwd=place)
    assert 'OPENED' in done.stdout
    checkpoint = load(distilled / 'iter_2.pth')
    inside = checkpoint['message_hub']['runtime_info']['cfg']
    assert inside == checkpoint['meta']['cfg'] and 'mmkd_plugin' not in inside
    assert 'DistillHook' in checkpoint['distiller']['cfg']


def test_hooks_and_imports_of_the_config_are_kept(distilled: Path):
    saved = Config.fromfile(distilled / 'student.py')
    kinds = [hook.type for hook in saved.custom_hooks]
    assert kinds == ['NumClassCheckHook', 'EMAHook', 'mmkd_plugin.DistillHook']
    assert saved.custom_hooks[-1].task_weight == 0.5
    assert 'mmkd_plugin' in saved.custom_imports.imports
    ema = load(distilled / 'iter_2.pth')['ema_state_dict']
    assert not any('teacher' in key or 'distiller' in key for key in ema)


def test_testing_needs_no_teacher(distilled: Path, place: Path):
    """On the distillation config (saved by the run), with the teacher's files gone."""
    config = Config.fromfile(distilled / 'student.py')
    config.custom_hooks[-1].teacher.update(config='gone.py', checkpoint='gone.pth')
    config.dump(place / 'moved.py')
    options = ('--work-dir', 'tested', '--out', 'predictions.pkl')
    run_tool('test.py', 'moved.py', 'distilled/iter_2.pth', *options, cwd=place)
    (metrics,) = (json.loads(p.read_text()) for p in (place / 'tested').glob('*/*.json'))
    assert 'coco/bbox_mAP' in metrics
    predictions = pickle.loads((place / 'predictions.pkl').read_bytes())
    assert len(predictions) == 12 and 'pred_instances' in predictions[0]


def test_testing_the_plain_config_with_flips_and_pictures(distilled: Path, place: Path):
    options = ('--work-dir', 'painted', '--tta', '--show-dir', 'pictures')
    done = run_tool('test.py', 'student.py', 'distilled/iter_2.pth', *options, cwd=place)
    pictures = list((place / 'painted').glob('*/pictures/*.*'))
    assert len(pictures) == 12
    said = done.stdout.split('The pictures are in ')[1].splitlines()[0]
    assert Path(said) == pictures[0].parent.resolve()


def test_resume_goes_on(distilled: Path, place: Path):
    more = ('--resume', '--cfg-options', 'train_cfg.max_iters=4')
    run_tool('train.py', 'student.py', '--work-dir', 'distilled', *TEACHER, *more, cwd=place)
    records = scalars(distilled)
    assert [r['step'] for r in records] == [3, 4]
    assert all(r['loss_gdd'] > 0 for r in records)
    assert (distilled / 'iter_4.pth').is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason='one GPU cannot serve two ranks')
def test_two_cpu_processes(teacher: Path, place: Path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    options = ('--work-dir', 'two', *TEACHER, '--recipe', 'cwd')
    run('bash', TOOLS / 'dist_train.sh', 'student.py', 2, *options, cwd=place, PORT=port)
    assert scalars(place / 'two')[-1]['loss_cwd'] > 0
    state = load(place / 'two' / 'iter_2.pth')['state_dict']
    assert not any(key.startswith(('module.', 'distiller.')) for key in state)


# ------------------------------------------------------------------------------- bad command lines

WITH_TEACHER = ['student.py', '--teacher', 'teacher.py']


@pytest.mark.parametrize(
    'arguments, message',
    [
        (WITH_TEACHER, 'needs --teacher-checkpoint FILE.*--teacher-random.*allow_random=True'),
        (['student.py', '--recipe', 'gdd'], 'without --teacher .* --recipe would have no effect'),
        (
            [*WITH_TEACHER, '--teacher-random', '--recipe', 'gdd-s'],
            "no recipe 'gdd-s'; nearest: 'gdd",
        ),
        ([*WITH_TEACHER, '--teacher-random', '--teacher-checkpoint', 'x.pth'], 'exclude each'),
        ([*WITH_TEACHER, '--teacher-checkpoint', 'iter_20.pth'], 'no file .*nearest .*iter_2.pth'),
        (['student.py', '--teacher', 'teachr.py', '--teacher-random'], 'nearest .*teacher.py'),
        (
            [*WITH_TEACHER, '--teacher-random', '--task-weight', '-1'],
            '--task-weight -1 .*0 or more',
        ),
        (
            [*WITH_TEACHER, '--teacher-random', '--init-student', 'neck,head'],
            "'neck,head' is no part",
        ),
        (['studnt.py'], 'there is no file studnt.py; nearest .*student.py'),
        (['mmdet::gfl/gfl_r50_fpn_1x_coc.py'], 'nearest .*gfl_r50_fpn_1x_coco.py'),
        (['nosuchpackage::a/b.py'], "package 'nosuchpackage' is not installed"),
        (['student.py', '--resume', 'iter_9.pth'], 'checkpoint to resume.*iter_2.pth'),
    ],
)
def test_mistakes_are_explained(arguments, message, place, monkeypatch):
    monkeypatch.chdir(place)
    (place / 'iter_2.pth').touch()
    with pytest.raises(SystemExit) as error:
        load_tool('train', monkeypatch).main(arguments)
    assert re.search(message, str(error.value)), error.value


def test_a_second_distill_hook_is_refused(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / 'own.py').write_text(
        "_base_ = 'student.py'\n"
        "custom_hooks = [dict(type='mmkd_plugin.DistillHook', recipe='gdd',\n"
        "                     teacher=dict(config='teacher.py', checkpoint='t.pth'))]\n"
    )
    command = ['own.py', '--teacher', 'teacher.py', '--teacher-random']
    with pytest.raises(SystemExit, match='already has a DistillHook'):
        load_tool('train', monkeypatch).main(command)


def test_the_flags_change_the_config_as_in_mmdet(place, monkeypatch):
    tool = load_tool('train', monkeypatch)
    args = tool.parse_args([str(place / 'student.py'), '--amp', '--auto-scale-lr', '--resume'])
    cfg = Config.fromfile(args.config)
    tool.apply_train_options(cfg, args)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)
    assert cfg.resume is True and cfg.load_from is None
    cfg.pop('auto_scale_lr')
    with pytest.raises(SystemExit, match='base_batch_size'):
        tool.apply_train_options(cfg, args)


@pytest.mark.parametrize('own', [None, 'json', ['json', 'math']])
def test_own_imports_and_hooks_stay_in_order(own, place, monkeypatch):
    tool = load_tool('train', monkeypatch)
    cfg = Config.fromfile(place / 'student.py')
    if own is not None:
        cfg.custom_imports = dict(imports=own, allow_failed_imports=True)
    command = [str(place / 'student.py'), '--teacher', str(place / 'teacher.py')]
    args = tool.parse_args([*command, '--teacher-random', '--init-student', 'neck+head'])
    tool.add_distillation(cfg, args)
    before = [own] if isinstance(own, str) else own or []
    assert cfg.custom_imports.imports == [*before, 'mmkd_plugin']
    assert cfg.custom_imports.allow_failed_imports is (own is not None)
    hook = cfg.custom_hooks[-1]
    assert (hook.recipe, hook.init_student, hook.teacher.allow_random) == ('gdd', 'neck+head', True)
    assert len(cfg.custom_hooks) == 3
