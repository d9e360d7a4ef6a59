"""The survey behind tools/inspect_model.py."""

from __future__ import annotations

import pytest
import torch
from detectors import model_config
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from toys import toy_model

from mmkd_plugin.taps import Recorder, parse_tap
from mmkd_plugin.taps.partial_forward import PartialForward
from mmkd_plugin.taps.probe import Probe
from mmkd_plugin.taps.tappable import survey


def build(family: str):
    with DefaultScope.overwrite_default_scope('mmdet'):
        register_all_modules(init_default_scope=False)
        return MODELS.build(model_config(family))


@pytest.fixture(scope='module')
def gfl():
    return build('GFL')


def test_rows_tell_path_kind_shape_stride_and_calls(gfl):
    rows = {row.path: row for row in survey(gfl, (128, 192))}
    width = gfl.neck.out_channels
    conv = rows['neck.fpn_convs.0.conv']
    assert (conv.kind, conv.stride, conv.calls) == ('Conv2d', 8, 1)
    assert conv.shape == (1, width, 16, 24) and conv.shapes == (conv.shape,)
    assert [rows[f'neck.fpn_convs.{i}.conv'].stride for i in range(4)] == [8, 16, 32, 64]

    shared = rows['bbox_head.gfl_cls']
    assert shared.calls == 5 and [s[2] for s in shared.shapes] == [16, 8, 4, 2, 1]
    neck = rows['neck']
    assert neck.calls == 1 and len(neck.shapes) == 5 and neck.kind == 'FPN'
    assert [rows[f'backbone.layer{i}'].stride for i in (1, 2, 3, 4)] == [4, 8, 16, 32]
    assert not any(path.startswith('data_preprocessor') for path in rows)


def test_every_row_can_be_tapped_and_gives_these_levels(gfl):
    """A row's path, used as a tap, gives the row's shapes in the same order."""
    rows = survey(gfl, (64, 64))
    assert len(rows) > 50
    recorder = Recorder(gfl, 'student')
    taps = {row.path: parse_tap(row.path, gfl, 'tap') for row in rows}
    for points in taps.values():
        recorder.listen(points)
    recorder.arm()
    Probe((64, 64)).run(gfl, PartialForward(gfl, ['backbone', 'neck', 'bbox_head']))
    recorder.disarm()
    for row in rows:
        captured = recorder.read(taps[row.path])
        assert tuple(tuple(c.tensor.shape) for c in captured) == row.shapes
    recorder.close()


def test_modules_that_are_not_called_are_left_out():
    paths = [row.path for row in survey(toy_model(), (16, 16))]
    assert 'bbox_head.cls' in paths and 'bbox_head.unused' not in paths
    # a list of modules is never called itself
    assert 'neck.convs' not in paths and 'neck.convs.1' in paths


def test_a_roi_head_is_left_out():
    paths = [row.path for row in survey(build('Faster R-CNN'), (64, 64))]
    assert 'rpn_head.rpn_cls' in paths
    assert not any(path.startswith('roi_head') for path in paths)


def test_what_is_no_map_has_no_stride():
    class Classifier(torch.nn.Sequential):
        pass

    model = Classifier(
        torch.nn.Conv2d(3, 4, 3, 2, 1),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 7),
    )
    rows = {row.path: row for row in survey(model, (32, 32))}
    assert rows['0'].stride == 2
    assert rows['3'].shape == (1, 7) and rows['3'].stride is None


def test_the_model_is_left_as_it_was(gfl):
    gfl.train()
    values = {k: v.clone() for k, v in gfl.state_dict().items()}
    state = torch.get_rng_state()
    survey(gfl, (64, 64))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, values[k]) for k, v in gfl.state_dict().items())
    assert gfl.training and not any(m._forward_hooks for m in gfl.modules())
