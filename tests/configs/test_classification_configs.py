"""The classification configs: structure, published numbers, schedules, and a real step of each."""

from __future__ import annotations

import math
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import Runner

from mmkd_plugin.model_config import find_config
from mmkd_plugin.models import ClsDataPreprocessor, ImageClassifier
from mmkd_plugin.recipes import classification as recipes
from mmkd_plugin.registry import build_loss
from mmkd_plugin.terms.schedule import Schedule

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'classification'
ALL = sorted(
    str(f.relative_to(CONFIGS).with_suffix(''))
    for f in CONFIGS.rglob('*.py')
    if '_base_' not in f.parts
)
PARAMETERS = dict(
    resnet8=83_892, resnet14=181_108, resnet20=278_324, resnet32=472_756, resnet44=667_188,
    resnet56=861_620, resnet110=1_736_564, resnet8x4=1_233_540, resnet32x4=7_433_860,
    wrn_16_1=180_916, wrn_16_2=703_284, wrn_40_1=569_780, wrn_40_2=2_255_156, vgg8=3_965_028,
    vgg11=9_277_284, vgg13=9_462_180, vgg16=14_774_436, vgg19=20_086_692, mobilenet_v2=812_836,
    shufflenet_v1=949_258, shufflenet_v2=1_355_528, cifar_resnet18=11_220_132,
    cifar_resnet50=23_705_252,
)  # fmt: skip
# teacher, student -> DKD's beta, CKD's weight and temperature (None: no published number)
PAIRS = {
    ('wrn_40_2', 'wrn_16_2'): (6, (100, 1)),
    ('wrn_40_2', 'wrn_40_1'): (6, (50, 2)),
    ('resnet56', 'resnet20'): (2, (10, 1)),
    ('resnet110', 'resnet20'): (2, None),
    ('resnet110', 'resnet32'): (2, (10, 1)),
    ('resnet32x4', 'resnet8x4'): (8, (100, 1)),
    ('vgg13', 'vgg8'): (6, (100, 1)),
    ('vgg13', 'mobilenet_v2'): (6, (50, 2)),
    ('cifar_resnet50', 'mobilenet_v2'): (8, (100, 1)),
    ('cifar_resnet50', 'vgg8'): (8, None),
    ('resnet32x4', 'shufflenet_v1'): (8, (100, 1)),
    ('resnet32x4', 'shufflenet_v2'): (8, (100, 1)),
    ('wrn_40_2', 'shufflenet_v1'): (8, (100, 1)),
}
SMALL_RATE = ('mobilenet_v2', 'shufflenet_v1', 'shufflenet_v2')


@cache
def read(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


def hook_of(config: Config) -> dict | None:
    found = [h for h in config.get('custom_hooks', []) if h['type'] == 'DistillHook']
    assert len(found) <= 1
    return found[0] if found else None


DISTILLED = [name for name in ALL if hook_of(read(name))]


def build(config: Config) -> ImageClassifier:
    """The model without memory for its weights."""
    model = {k: v for k, v in config.model.items() if k not in ('type', 'data_preprocessor')}
    if model['backbone']['type'] == 'TimmBackbone':
        pytest.importorskip('timm')
    with torch.device('meta'):
        return ImageClassifier(**model)


def arch(name: str) -> str:
    return build(read(name)).backbone.arch


# -- what the files say ----------------------------------------------------------------------------


@pytest.mark.parametrize('name', PARAMETERS)
def test_cifar_networks(name):
    config = read(f'cifar100/{name}')
    assert sum(p.numel() for p in build(config).parameters()) == PARAMETERS[name]
    assert config.optim_wrapper.optimizer == dict(
        type='SGD', lr=0.01 if name in SMALL_RATE else 0.05, momentum=0.9, weight_decay=5e-4
    )
    assert 'paramwise_cfg' not in config.optim_wrapper  # the decay is on all parameters
    assert config.train_dataloader.batch_size == 64
    assert config.train_dataloader.get('drop_last', False) is False
    assert config.train_cfg.max_epochs == 240


@pytest.mark.parametrize('name', ALL)
def test_every_config_says_what_a_run_needs(name):
    config = read(name)
    assert config.default_scope == 'mmkd_plugin'
    assert 'mmkd_plugin' in config.custom_imports.imports
    assert config.default_hooks.checkpoint.type == 'SafeCheckpointHook'
    assert config.default_hooks.step_seed.type == 'StepSeedHook'
    for part in ('train', 'val', 'test'):
        assert config[f'{part}_dataloader'] and config[f'{part}_cfg']
    assert config.val_evaluator.type == 'ClsAccuracy'


@pytest.mark.parametrize('name', DISTILLED)
def test_teacher_is_a_config_here_with_the_same_classes(name):
    config = read(name)
    teacher = hook_of(config).teacher
    if teacher == 'previous_epoch':
        return
    path = find_config(teacher.config)
    assert path.is_file() and path.relative_to(CONFIGS).with_suffix('').as_posix() in ALL
    own = Config.fromfile(path)
    assert hook_of(own) is None
    assert own.model.head.num_classes == config.model.head.num_classes
    if not teacher.checkpoint.startswith('https://'):
        unit, length = ('epoch', own.train_cfg.get('max_epochs'))
        if length is None:
            unit, length = 'iter', own.train_cfg.max_iters
        assert teacher.checkpoint == f'work_dirs/{path.stem}/{unit}_{length}.pth'


def test_all_pairs_are_there_and_short():
    files = {f'{t}_{s}' for t, s in PAIRS}
    assert files <= {Path(n).name for n in ALL if n.startswith('cifar100/')}
    for teacher, student in PAIRS:
        file = CONFIGS / 'cifar100' / f'{teacher}_{student}.py'
        lines = [x for x in file.read_text().splitlines() if x and not x.startswith('#')]
        assert len(lines) <= 6
        config, alone = read(f'cifar100/{teacher}_{student}'), read(f'cifar100/{student}')
        assert config.model == alone.model and config.optim_wrapper == alone.optim_wrapper
        assert hook_of(config).teacher.config.endswith(f'/{teacher}.py')


@pytest.mark.parametrize('method', recipes.names())
@pytest.mark.parametrize('teacher, student', PAIRS)
def test_recipes_have_the_numbers_of_the_pairs(teacher, student, method):
    beta, ckd = PAIRS[teacher, student]
    pair = arch(f'cifar100/{teacher}'), arch(f'cifar100/{student}')
    plan = recipes.plan(method, *pair, epochs=240)
    (term,) = plan['terms']
    assert term['student'] == 'cls_logits'
    loss = build_loss(term['loss'], method)
    weight, task_weight = term['weight'], plan['task_weight']
    if method in ('kd', 'loca', 'ipwd', 'ipwd-inverse'):
        assert (weight, task_weight, loss.temperature) == (0.9, 0.1, 4.0)
    elif method in ('dkd', 'dkd-loca'):
        assert (weight, task_weight, loss.temperature) == (1.0, 1.0, 4.0)
        assert (loss.alpha, loss.beta, term['warmup'], term['by_epoch']) == (1.0, beta, 20, True)
    elif method == 'ckd':
        assert (weight, loss.temperature) == (ckd or (10, 1)) and task_weight == 1.0
    else:
        assert method == 'funmatch' and task_weight == 0.0 and type(loss).__name__ == 'KDLoss'


def settings(term: dict) -> dict:
    """A term with its loss's settings instead of the arguments that were written."""
    loss = build_loss(dict(term['loss']), 'test')
    plain = (bool, int, float, str, type(None))
    public = {k: v for k, v in vars(loss).items() if isinstance(v, plain) and k[0] != '_'}
    return {**term, 'loss': (type(loss).__name__, public)}


@pytest.mark.parametrize('method', ['kd', 'dkd', 'loca', 'ckd', 'ipwd', 'funmatch'])
def test_written_out_configs_are_the_recipes(method):
    hook = hook_of(read(f'cifar100/{method}_resnet56_resnet20'))
    plan = recipes.plan(method, 'resnet56', 'resnet20', epochs=240)
    assert [settings(t) for t in hook.terms] == [settings(t) for t in plan['terms']]
    assert hook.task_weight == plan['task_weight']


@pytest.mark.parametrize(
    'name', ['dkd_resnet34_resnet18_imagenet', 'ckd_resnet34_resnet18_200e_imagenet']
)
def test_imagenet_configs_are_the_recipes(name):
    hook = hook_of(read(f'imagenet/{name}'))
    plan = recipes.plan(name[:3], 'resnet34', 'resnet18', epochs=100)
    assert [settings(t) for t in hook.terms] == [settings(t) for t in plan['terms']]
    assert hook.task_weight == plan['task_weight']


def test_imagenet_schedules():
    config = read('imagenet/resnet34_resnet18_imagenet')
    assert (
        config.optim_wrapper.optimizer.lr == 0.2
        and config.optim_wrapper.optimizer.weight_decay == 1e-4
    )
    assert config.param_scheduler[0].milestones == [30, 60, 90]
    assert config.train_dataloader.batch_size == 512
    longer = read('imagenet/ckd_resnet34_resnet18_200e_imagenet')
    assert longer.train_cfg.max_epochs == 200
    rates = learning_rates(longer, 1, [0, 100, 199])
    assert list(rates.values()) == pytest.approx([0.2, 0.1, 0.0], abs=1e-4)


@pytest.mark.parametrize('pair', recipes.IMAGENET_DKD_BETA)
def test_imagenet_networks_are_those_of_the_recipes(pair):
    names = [name for name in ALL if name.startswith('imagenet/') and hook_of(read(name)) is None]
    assert set(pair) <= {arch(name) for name in names}
    teacher, student = pair
    hook = hook_of(read(f'imagenet/{teacher}_{student}_imagenet'))
    assert Path(hook.teacher.config).stem == f'{teacher}_imagenet'
    assert arch(f'imagenet/{teacher}_{student}_imagenet') == student


def test_imagenet_teachers_are_torchvisions():
    from torchvision import models

    for pair, network in (('resnet34_resnet18', 'resnet34'), ('resnet50_mobilenet_v1', 'resnet50')):
        hook = hook_of(read(f'imagenet/{pair}_imagenet'))
        assert hook.teacher.checkpoint == models.get_model_weights(network).IMAGENET1K_V1.url


# -- schedules -------------------------------------------------------------------------------------


def learning_rates(config: Config, epoch_length: int, steps: list[int]) -> dict[int, float]:
    """The rate of each of ``steps`` (from 0), by MMEngine's own optimizer and schedulers."""
    wrapper = build_optim_wrapper(torch.nn.Linear(1, 1), config.optim_wrapper)
    schedulers = []
    for cfg in config.param_scheduler:
        cfg = dict(cfg, optimizer=wrapper)
        cls = PARAM_SCHEDULERS.get(cfg['type'])
        if cfg.pop('convert_to_iter_based', False):
            cfg.pop('type')
            schedulers.append(cls.build_iter_from_epoch(**cfg, epoch_length=epoch_length))
        else:
            schedulers.append(PARAM_SCHEDULERS.build(cfg))
    found = {}
    for step in range(max(steps) + 1):
        wrapper.optimizer.step()  # without gradients; or PyTorch warns about the order
        if step in steps:
            found[step] = wrapper.optimizer.param_groups[0]['lr']
        for scheduler in schedulers:
            if not scheduler.by_epoch or (step + 1) % epoch_length == 0:
                scheduler.step()
    return found


def test_cifar_schedule():
    rates = learning_rates(read('cifar100/resnet20'), 1, [0, 149, 150, 179, 180, 209, 210, 239])
    expected = [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5]
    assert list(rates.values()) == pytest.approx(expected)


def test_fast_cifar_schedule():
    config = read('cifar100/resnet20_60e')
    assert (config.train_cfg.max_epochs, config.train_dataloader.batch_size) == (60, 128)
    rates = learning_rates(config, 1, [0, 36, 37, 45, 52])
    assert list(rates.values()) == pytest.approx([0.1, 0.1, 0.01, 1e-3, 1e-4])


def test_ckd_published_schedule():
    config = read('cifar100/ckd_resnet56_resnet20_480e')
    assert config.train_cfg.max_epochs == 480
    rates = learning_rates(config, 1, [0, 240, 479])
    assert list(rates.values()) == pytest.approx([0.05, 0.025, 0.0], abs=1e-6)


# Official code: epochs, lr, wd, T, steps.
FUNMATCH = {
    'fast_flowers102': (3e-3, 3e-4, 10, 19_922),
    'medium_flowers102': (1e-3, 1e-4, 1, 199_219),
    'long_flowers102': (3e-4, 1e-5, 1, 1_992_188),
    'fast_pets': (1e-2, 1e-3, 5, 6_469),
    'medium_pets': (3e-3, 3e-4, 10, 19_406),
    'long_pets': (3e-3, 1e-5, 2, 194_062),
    'fast_food101': (1e-2, 1e-3, 10, 13_315),
    'medium_food101': (1e-3, 3e-4, 10, 133_154),
    'long_food101': (1e-2, 1e-4, 5, 399_463),
    'fast_sun397': (1e-2, 1e-3, 10, 14_869),
    'medium_sun397': (1e-3, 1e-4, 10, 148_688),
    'long_sun397': (1e-2, 3e-5, 10, 446_062),
    '1200e_imagenet': (3e-2, 3e-4, 1, 367_835),
}


@pytest.mark.parametrize('name', FUNMATCH)
def test_funmatch_numbers(name):
    lr, wd, temperature, steps = FUNMATCH[name]
    config = read(f'funmatch/funmatch_r152x2_r50x1_{name}')
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr) == ('AdamW', lr)
    assert optimizer.weight_decay == pytest.approx(wd / lr)
    assert config.optim_wrapper.clip_grad.max_norm == 1.0
    assert config.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert config.model.data_preprocessor.mixup == 1.0
    hook = hook_of(config)
    (term,) = hook.terms
    assert term.loss == dict(type='KDLoss', temperature=temperature) and hook.task_weight == 0.0
    assert config.train_cfg.max_iters == steps
    warmup, cosine = config.param_scheduler
    imagenet = 'imagenet' in name
    W = 5000 if imagenet else 1500
    assert (warmup.begin, warmup.end, cosine.begin, cosine.end) == (0, W + 1, W, steps)
    assert cosine.T_max == steps - W
    transform = config.train_dataloader.dataset.transforms[-1]
    size = 224 if imagenet else 128
    assert (transform.mode, transform.size, transform.scale) == ('same', size, (0.05, 1.0))


def test_funmatch_schedule():
    """Example 3 of the method's description: flowers102, fast."""
    config = read('funmatch/funmatch_r152x2_r50x1_fast_flowers102')
    expected = {0: 0.0, 1: 2e-6, 750: 1.5e-3, 1500: 3e-3, 10_711: 1.5e-3, 19_921: 0.0}
    rates = learning_rates(config, 1, list(expected))
    assert rates == pytest.approx(expected, abs=1e-10)


def test_decay_as_in_the_official_code():
    """Example 4: theta <- theta - m (lr adam + wd theta) with wd = 3e-4, lr = 0.03, m = 0.5."""
    config = read('funmatch/funmatch_r152x2_r50x1_1200e_imagenet')
    theta = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    theta.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)
    optimizer = config.optim_wrapper.optimizer
    half = 0.5 * optimizer.lr
    torch.optim.AdamW([theta], lr=half, weight_decay=optimizer.weight_decay).step()
    assert theta.tolist() == pytest.approx([0.98485, -2.0147], abs=1e-7)


@pytest.mark.parametrize(
    'name, mode, resized',
    [
        ('fixed', 'fixed', True),
        ('independent', 'independent', False),
        ('consistent', 'same', False),
    ],
)
def test_other_views_differ_in_nothing_else(name, mode, resized):
    other = read(f'funmatch/{name}_r152x2_r50x1_fast_flowers102')
    default = read('funmatch/funmatch_r152x2_r50x1_fast_flowers102')
    transforms = other.train_dataloader.dataset.transforms
    assert transforms[-1].mode == mode and (transforms[0].type == 'Resize') == resized
    assert other.model.data_preprocessor.mixup is None
    for key in ('optim_wrapper', 'param_scheduler', 'custom_hooks', 'train_cfg', 'val_dataloader'):
        assert other[key] == default[key]


def test_two_resolutions():
    config = read('funmatch/funmatch_r152x2-384_r50x1-224_1200e_imagenet')
    (view,) = config.train_dataloader.dataset.transforms
    assert (view.mode, view.size, view.teacher_size) == ('same', 224, 384)
    assert hook_of(config).teacher.checkpoint.endswith('_384/resolve/main/pytorch_model.bin')


@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('funmatch/')])
def test_funmatch_networks(name):
    config = read(name).copy()
    config.model.backbone['pretrained'] = False
    config.model.backbone.name = config.model.backbone.name.partition('.')[0]
    classes = config.model.head.num_classes
    small = {1000: 25_549_352, 102: 23_709_350, 37: 23_576_165}
    large = {1000: 236_335_208, 102: 232_656_102, 37: 232_389_797}
    count = sum(p.numel() for p in build(config).parameters())
    expected = (large if '152x2' in config.model.backbone.name else small).get(classes)
    assert expected is None or count == expected


# -- one step of each ------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def cifar_root(tmp_path_factory) -> Path:
    """Files of CIFAR-100's layout, with noise."""
    root = tmp_path_factory.mktemp('cifar')
    folder = root / 'cifar-100-python'
    folder.mkdir()
    draw = np.random.RandomState(0)
    for split in ('train', 'test'):
        data = draw.randint(0, 256, (8, 3072), dtype=np.uint8)
        content = dict(data=data, fine_labels=list(range(8)), coarse_labels=[0] * 8)
        (folder / split).write_bytes(pickle.dumps(content))
    names = [f'class {i}' for i in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=names)))
    return root


class Watch(Hook):
    priority = 'LOWEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses = {k: v.item() for k, v in outputs.items() if 'loss' in k}


def run_briefly(config: Config, work_dir: Path, epochs: int = 1) -> dict[str, float]:
    """One epoch, or one iteration, of a few images, with a random teacher; returns the losses."""
    hook = hook_of(config)
    if hook and hook.teacher != 'previous_epoch':
        hook.teacher.update(checkpoint=None, allow_random=True)
    config.train_dataloader.batch_size = 4
    if 'max_epochs' in config.train_cfg:
        config.train_cfg.max_epochs = epochs
    config.work_dir, config.log_level = str(work_dir), 'WARNING'
    config.default_hooks.checkpoint = None
    watch = Watch()
    runner = Runner.from_cfg(config)
    runner.register_hook(watch)
    runner.train()
    assert all(math.isfinite(v) for v in watch.losses.values()), watch.losses
    return watch.losses


def cifar_config(name: str, root: Path) -> Config:
    config = Config.fromfile(CONFIGS / 'cifar100' / f'{name}.py')
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.update(data_root=str(root), check_md5=False)
    return config


METHOD_CONFIGS = [
    Path(n).name
    for n in DISTILLED
    if n.startswith('cifar100/') and tuple(Path(n).name.rsplit('_', 1)) not in PAIRS
    and 'resnet20' in n
]  # fmt: skip


@pytest.mark.parametrize('name', METHOD_CONFIGS)
def test_method_configs_train(name, cifar_root, tmp_path):
    config = cifar_config(name, cifar_root)
    epochs = 2 if hook_of(config).teacher == 'previous_epoch' else 1
    losses = run_briefly(config, tmp_path, epochs)
    assert any(k not in ('loss', 'loss_cls') and v > 0 for k, v in losses.items()), losses
    if name.startswith('funmatch'):
        assert losses['loss_cls'] == 0


@pytest.mark.slow
@pytest.mark.parametrize('teacher, student', PAIRS)
def test_pair_configs_train(teacher, student, cifar_root, tmp_path):
    losses = run_briefly(cifar_config(f'{teacher}_{student}', cifar_root), tmp_path)
    assert losses['loss_kd'] > 0


@pytest.mark.slow
@pytest.mark.parametrize('name', PARAMETERS)
def test_network_configs_train(name, cifar_root, tmp_path):
    assert run_briefly(cifar_config(name, cifar_root), tmp_path)['loss_cls'] > 0


def test_self_distillation_reaches_its_share_at_the_end():
    for name in ('ps_kd_resnet20', 'ipwd_self_resnet20'):
        config = read(f'cifar100/{name}')
        hook = hook_of(config)
        (term,) = hook.terms
        assert hook.task_weight == 'complement' and term.weight == 0.8 and term.by_epoch
        schedule = Schedule(term.begin, warmup=term.warmup, by_epoch=True)
        epochs = config.train_cfg.max_epochs
        assert [schedule.factor(0, e) for e in (0, epochs - 2, epochs - 1)] == [
            0.0, pytest.approx(1 - 1 / 239), 1.0
        ]  # fmt: skip


def test_digits_pair_trains(tmp_path):
    config = Config.fromfile(CONFIGS / 'digits' / 'resnet14_resnet8-narrow_digits.py')
    config.train_dataloader.dataset.num_samples = 20
    assert run_briefly(config, tmp_path)['loss_kd'] > 0


def draw_images(root: Path, splits: tuple[str, ...], classes: int = 10) -> None:
    """One image of noise per class, in ImageFolder's layout."""
    from PIL import Image

    draw = np.random.RandomState(0)
    for split in splits:
        for label in range(classes):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            pixels = draw.randint(0, 256, (96, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / 'image.jpg')


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('imagenet/')])
def test_imagenet_configs_train(name, tmp_path):
    """Data, networks and method as they are; ten images of noise."""
    draw_images(tmp_path, ('train', 'val'))
    config = Config.fromfile(CONFIGS / f'{name}.py')
    for part in ('train', 'val', 'test'):
        loader = config[f'{part}_dataloader']
        loader.update(num_workers=0, pin_memory=False)
        loader.dataset.data_root = str(tmp_path)
    losses = run_briefly(config, tmp_path / 'work')
    distilled = [v for k, v in losses.items() if k not in ('loss', 'loss_cls')]
    assert losses['loss_cls'] > 0 and len(distilled) == bool(hook_of(config))
    assert all(v > 0 for v in distilled)


def test_clothing_pair_trains(tmp_path):
    draw_images(tmp_path, ('train', 'validation', 'test'))
    config = Config.fromfile(CONFIGS / 'clothing10' / 'resnet18_shufflenet_clothing10.py')
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.data_root = str(tmp_path)
    assert run_briefly(config, tmp_path / 'work')['loss_kd'] > 0


@pytest.mark.parametrize(
    'name, teacher_size',
    [
        ('funmatch_r152x2_r50x1_fast_flowers102', None),
        ('consistent_r152x2_r50x1_fast_flowers102', None),
        ('fixed_r152x2_r50x1_fast_flowers102', 128),
        ('independent_r152x2_r50x1_fast_flowers102', 128),
        ('funmatch_r152x2-384_r50x1-224_1200e_imagenet', 384),
    ],
)
def test_funmatch_pipelines_train(name, teacher_size, tmp_path, monkeypatch):
    """The configs' data, views, loop and schedule, with small networks on a few images."""
    draw_images(tmp_path, ('train', 'val'), classes=4)
    config = Config.fromfile(CONFIGS / 'funmatch' / f'{name}.py')
    config.model.backbone = dict(type='TorchvisionBackbone', name='shufflenet_v2_x0_5')
    config.model.head.num_classes = 4
    config.train_dataloader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        loader = config[f'{part}_dataloader']
        loader.update(num_workers=0, pin_memory=False)
        source = dict(name='ImageFolder', data_root=str(tmp_path), split=split)
        loader.dataset.update(source)
    small = Config(dict(model=config.model.to_dict(), default_scope='mmkd_plugin'))
    small.model.data_preprocessor.mixup = None
    small.model.head.init = 'default'  # zero logits on both sides would match perfectly
    small.dump(tmp_path / 'teacher.py')
    config.custom_hooks[0].teacher.config = str(tmp_path / 'teacher.py')
    config.train_cfg.update(max_iters=2, val_interval=2)
    seen = []
    preprocess = ClsDataPreprocessor.forward

    def watch(self, data, training=False):
        out = preprocess(self, data, training)
        seen.append(out) if training else None
        return out

    monkeypatch.setattr(ClsDataPreprocessor, 'forward', watch)
    losses = run_briefly(config, tmp_path / 'work')
    assert losses['loss_funmatch'] > 0 and losses['loss_cls'] == 0
    assert len(seen) == 3  # that on which shapes are measured, and two steps
    for batch in seen:
        teacher = batch['data_samples'].get('teacher_inputs')
        assert (None if teacher is None else teacher.shape[-1]) == teacher_size
        assert batch['inputs'].shape[-1] == config.view.size
        assert ('mixed_lam' in batch['data_samples']) == bool(config.model.data_preprocessor.mixup)
