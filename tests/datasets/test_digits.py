"""The digits set: what is in it, and that it is made whole, once, and the same for a seed."""

from __future__ import annotations

import json
import multiprocessing
import runpy
import shlex
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmkd_plugin.datasets import DigitsSpec, digits, digits_scene, ensure_digits

SMALL = dict(train=6, val=3, image_size=96, seed=3)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob('*')) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def annotations(root: Path, split: str) -> dict:
    return json.loads((root / 'annotations' / f'{split}.json').read_text())


def test_same_seed_same_files_other_seed_other_images(tmp_path):
    one = ensure_digits(tmp_path / 'one', SMALL, progress=False)
    two = ensure_digits(tmp_path / 'two', SMALL, progress=False)
    assert contents(one) == contents(two)
    other = ensure_digits(tmp_path / 'other', {**SMALL, 'seed': 4}, progress=False)
    assert contents(one)['train/000001.png'] != contents(other)['train/000001.png']


def test_more_images_keep_the_first_ones(tmp_path):
    few = ensure_digits(tmp_path / 'few', SMALL, progress=False)
    more = ensure_digits(tmp_path / 'more', {**SMALL, 'train': 9}, progress=False)
    for number in range(1, 7):
        name = f'train/{number:06d}.png'
        assert (few / name).read_bytes() == (more / name).read_bytes()


def test_train_and_val_use_disjoint_scans(digits_root):
    used = {
        split: {entry['scan'] for entry in annotations(digits_root, split)['annotations']}
        for split in ('train', 'val')
    }
    assert used['train'] and used['val'] and not used['train'] & used['val']
    _, labels = digits_scene.load_scans()
    pools = digits_scene.split_scans(labels, DigitsSpec())
    assert len(np.intersect1d(pools['train'], pools['val'])) == 0
    assert len(pools['train']) + len(pools['val']) == len(labels) == 1797
    assert set(labels[pools['train']]) == set(labels[pools['val']]) == set(range(10))


def test_the_label_is_the_scans_digit(digits_root):
    _, labels = digits_scene.load_scans()
    for entry in annotations(digits_root, 'train')['annotations']:
        assert entry['category_id'] == labels[entry['scan']] + 1


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_masks_and_semantic_map_agree(digits_root, split):
    coco = COCO(str(digits_root / 'annotations' / f'{split}.json'))
    assert [category['name'] for category in coco.dataset['categories']] == list('0123456789')
    assert min(coco.anns) == 1  # COCOeval takes id 0 for "no match"
    for image in coco.dataset['images']:
        picture = cv2.imread(str(digits_root / split / image['file_name']))
        semantic = cv2.imread(str(digits_root / 'semantic' / split / image['file_name']), -1)
        assert picture.shape == (image['height'], image['width'], 3)
        assert semantic.shape == picture.shape[:2] and semantic.dtype == np.uint8
        expected = np.zeros_like(semantic)
        for entry in coco.imgToAnns[image['id']]:
            mask = coco.annToMask(entry).astype(bool)
            rows, columns = np.nonzero(mask)
            x, y, width, height = entry['bbox']
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert entry['area'] == mask.sum() >= digits_scene.MIN_PIXELS
            assert not expected[mask].any(), 'instances share pixels'
            expected[mask] = entry['category_id']
        assert np.array_equal(semantic, expected)


def test_digits_are_visible(digits_root):
    """A digit differs from the ring around it in most cases, else there is nothing to learn."""
    coco = COCO(str(digits_root / 'annotations' / 'train.json'))
    differences = []
    for entry in coco.dataset['annotations']:
        picture = cv2.imread(str(digits_root / 'train' / coco.imgs[entry['image_id']]['file_name']))
        mask = coco_mask.decode(entry['segmentation'])
        ring = cv2.dilate(mask, np.ones((7, 7))) - cv2.dilate(mask, np.ones((3, 3)))
        inside, outside = picture[mask > 0].mean(0), picture[ring > 0].mean(0)
        differences.append(np.abs(inside - outside).max())
    assert np.median(differences) > 30


def test_counts_sizes_and_scale_follow_the_settings(tmp_path):
    spec = DigitsSpec(image_size=160, train=12, val=2, objects=(2, 3), scale=(0.2, 0.25), clutter=0)
    root = ensure_digits(tmp_path / 'set', spec, progress=False)
    content = annotations(root, 'train')
    assert len(content['images']) == 12 and content['images'][0]['width'] == 160
    owners = [entry['image_id'] for entry in content['annotations']]
    counts = [owners.count(image['id']) for image in content['images']]
    assert max(counts) == 3 and min(counts) >= 2
    heights = [entry['bbox'][3] for entry in content['annotations']]
    assert 0.15 * 160 < min(heights) and max(heights) < 0.4 * 160


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'objects' is \\(3, 2\\)"):
        DigitsSpec(objects=(3, 2))
    with pytest.raises(ValueError, match="\\['size'\\].*image_size"):
        ensure_digits(tmp_path / 'set', dict(size=64))
    assert not (tmp_path / 'set').exists()


def test_other_settings_in_the_same_folder_are_detected(tmp_path):
    root = ensure_digits(tmp_path / 'set', SMALL, progress=False)
    with pytest.raises(FileExistsError, match='seed is 3 there, 5 asked'):
        ensure_digits(root, {**SMALL, 'seed': 5}, progress=False)
    before = contents(root)
    assert ensure_digits(root, None, progress=False) == root  # None takes what is there
    assert contents(root) == before
    ensure_digits(root, {**SMALL, 'seed': 5}, progress=False, overwrite=True)
    assert json.loads((root / 'digits.json').read_text())['seed'] == 5


def test_the_command_in_that_message_mends_it(tmp_path, capsys):
    root = ensure_digits(tmp_path / 'set', SMALL, progress=False)
    wanted = {**SMALL, 'seed': 5, 'objects': (1, 2)}
    with pytest.raises(FileExistsError) as error:
        ensure_digits(root, wanted, progress=False)
    words = shlex.split(str(error.value).split('make it again with: ')[1])
    assert words[:2] == ['python', 'tools/make_digits.py']
    path = Path(__file__).resolve().parents[2] / words[1]
    assert runpy.run_path(str(path))['main'](words[2:]) == 0
    assert ensure_digits(root, wanted, progress=False) == root
    assert 'train: 6 images' in capsys.readouterr().out


def test_a_folder_that_is_no_digits_set_is_left_alone(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match='no digits set'):
            ensure_digits(tmp_path / 'mine', SMALL, progress=False, overwrite=overwrite)
    assert (tmp_path / 'mine' / 'thesis.txt').read_text() == 'precious'


def test_missing_scikit_learn_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(ModuleNotFoundError, match='pip install scikit-learn'):
        ensure_digits(tmp_path / 'set', SMALL, progress=False)
    assert not (tmp_path / 'set').exists()


FORK = multiprocessing.get_context('fork')  # starts at once: the packages are imported already


def make_and_tell(root: Path, queue) -> None:
    write = digits.write_digits

    def told(*args):
        queue.put('made')
        write(*args)

    digits.write_digits = told
    ensure_digits(root, dict(train=40, val=10), progress=False)
    queue.put('ready')


def test_processes_at_the_same_time_make_it_once(tmp_path):
    queue = FORK.Queue()
    processes = [FORK.Process(target=make_and_tell, args=(tmp_path / 'set', queue)) for _ in '123']
    for process in processes:
        process.start()
    told = [queue.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(told) == ['made', 'ready', 'ready', 'ready']
    assert len(list((tmp_path / 'set' / 'train').iterdir())) == 40


def test_without_locks_the_set_is_still_whole(tmp_path, monkeypatch):
    """Where the file system has no locks, another process may finish first: its set is taken."""
    write = digits.write_digits

    def slow(folder, spec, progress):
        write(folder, spec, progress)
        write(tmp_path / 'set', spec, progress)  # the other process is done in the meantime

    monkeypatch.setattr(digits, 'write_digits', slow)
    assert ensure_digits(tmp_path / 'set', SMALL, progress=False) == tmp_path / 'set'
    assert len(list((tmp_path / 'set' / 'train').iterdir())) == SMALL['train']
    assert not list(tmp_path.glob('.set.part-*'))


def test_killed_while_making_leaves_no_set_and_the_next_run_cleans_up(tmp_path):
    root = tmp_path / 'set'
    many = dict(train=20000, val=1)
    process = FORK.Process(target=ensure_digits, args=(root, many, False))
    process.start()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob('.set.part-*/train/00000[5-9].png')):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.join()
    assert not root.exists()
    assert list(tmp_path.glob('.set.part-*'))
    ensure_digits(root, SMALL, progress=False)
    assert len(list((root / 'train').iterdir())) == SMALL['train']
    assert not list(tmp_path.glob('.set.part-*'))


def test_failing_while_making_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, 'imwrite', lambda *args: False)
    with pytest.raises(OSError, match='is the disk full'):
        ensure_digits(tmp_path / 'set', SMALL, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ['.set.lock']


def test_the_registered_data_set_makes_the_files_and_gives_masks(tmp_path):
    pytest.importorskip('mmdet')
    from mmengine.registry import DATASETS, init_default_scope

    import mmkd_plugin  # noqa: F401  (registers)

    init_default_scope('mmdet')
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    ]
    dataset = DATASETS.build(
        dict(type='mmkd_plugin.DigitsCocoDataset', split='val', digits=SMALL,
             data_root=str(tmp_path / 'set'), test_mode=True, pipeline=pipeline)
    )  # fmt: skip
    assert dataset.metainfo['classes'] == tuple('0123456789') and len(dataset) == 3
    sample = dataset[0]
    expected = annotations(tmp_path / 'set', 'val')
    mine = [entry for entry in expected['annotations'] if entry['image_id'] == 1]
    assert len(sample['gt_masks']) == len(sample['gt_bboxes']) == len(mine)
    assert [label + 1 for label in sample['gt_bboxes_labels']] == [e['category_id'] for e in mine]
    assert [int(mask.sum()) for mask in sample['gt_masks'].masks] == [e['area'] for e in mine]
    assert sample['gt_seg_map'].max() == max(e['category_id'] for e in mine)


def test_the_data_set_refuses_an_unknown_split():
    pytest.importorskip('mmdet')
    from mmkd_plugin.datasets.digits_coco import DigitsCocoDataset

    with pytest.raises(ValueError, match="'split' = 'test'"):
        DigitsCocoDataset(split='test')
