"""Two gloo processes on the CPU: accuracy counts each image once, mixup and BatchNorm agree."""

from __future__ import annotations

import torch
from ranks import run_ranks

SCRIPT = """
import os
import torch
import torch.distributed as dist
dist.init_process_group('gloo')
import classification_toys as toys
from mmengine.hooks import Hook
from mmengine.runner import Runner

rank = int(os.environ['RANK'])
class Keep(Hook):
    priority = 'LOWEST'
    def before_train(self, runner):
        self.lams, self.crops = [], []
        preprocessor = runner.model.module.data_preprocessor
        forward = preprocessor.forward
        def watched(data, training=False):
            out = forward(data, training)
            if 'mixed_lam' in out['data_samples']:
                self.lams.append(out['data_samples']['mixed_lam'].item())
                self.crops.append(torch.rand(()).item())
            return out
        preprocessor.forward = watched
    def after_val_epoch(self, runner, metrics=None):
        self.metrics = metrics

config = toys.run_config(
    {out!r} + '/run', hooks=[dict(type='StepSeedHook'), dict(type='RecalibrateBNHook',
    num_batches=2)], until=2, val=True, launcher='pytorch', model_wrapper_cfg=dict(
    type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False))
config.experiment_name = 'ddp'
config.train_dataloader.dataset.count = config.val_dataloader.dataset.count = 21
config.train_dataloader.batch_size = config.val_dataloader.batch_size = 4
runner = Runner.from_cfg(config)
keep = Keep()
runner.register_hook(keep)
runner.train()
model = runner.model.module.eval()
data = runner.val_dataloader.dataset.__getitems__(list(range(21)))
out = model.test_step(data)[0]
hits = (out['pred_score'].argmax(1) == out['gt_label']).float().mean().item() * 100
torch.save(dict(lams=keep.lams, crops=keep.crops, metrics=keep.metrics, expected=hits,
                mean=model.norm.running_mean), {out!r} + f'/{{rank}}.pth')
"""


def test_two_processes(tmp_path):
    run_ranks(SCRIPT.format(out=str(tmp_path)), cwd=tmp_path)
    one, two = (torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in (0, 1))
    assert one['lams'] == two['lams'] and len(set(one['lams'])) == len(one['lams']) >= 4
    assert not set(one['crops']) & set(two['crops'])
    assert torch.equal(one['mean'], two['mean'])
    # 21 images on two ranks: the sampler shows one of them twice
    assert abs(one['metrics']['accuracy/top1'] - one['expected']) < 1e-3
