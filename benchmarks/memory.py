"""How much memory tensors take: what modules hold, and the height that one step adds."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def held(module: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> int:
    """Bytes of parameters, buffers and optimizer state (gradients belong to the step)."""
    tensors = [*module.parameters(), *module.buffers()]
    if optimizer is not None:
        tensors += [
            v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)
        ]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()
    }
    return sum(storages.values())


def peak(step: Callable[[], None], device: torch.device) -> int:
    """Bytes that ``step`` adds at its height to what lies there when it begins.

    On CUDA this is the caching allocator's own maximum of allocated (not reserved) bytes. On the
    CPU it is the running sum over the allocations and frees that torch's profiler records; scratch
    space that kernels take from the system by themselves (oneDNN's, for example) is not in it, so
    this is the memory of tensors, not of the process.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    changes = [
        (event['ts'], event['args']['Bytes'])
        for event in events
        if event.get('name') == '[memory]' and event['args'].get('Device Type') == 0
    ]
    height = now = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        now += change
        height = max(height, now)
    return height
