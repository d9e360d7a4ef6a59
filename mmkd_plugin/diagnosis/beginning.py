"""What a run tells its models before the first iteration, for models that no Runner drives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.logging import MessageHub


@contextmanager
def as_in_a_run(cfg: Config) -> Iterator[None]:
    """MMEngine's message hub as at the beginning of a training, and as it was afterwards.

    Some models look there for how far training is (YOLOX's image sizes, TOOD's assigner, BoxInst's
    warm-up).
    """
    length = cfg.get('train_cfg') or {}
    told = dict(
        loop_stage='train',
        iter=0,
        epoch=0,
        max_iters=length.get('max_iters'),
        max_epochs=length.get('max_epochs'),
    )
    hub = MessageHub.get_current_instance()
    before = {key: hub.get_info(key) for key in told if key in hub.runtime_info}
    hub.update_info_dict(told)
    try:
        yield
    finally:
        for key in told:
            hub.pop_info(key)
        hub.update_info_dict(before)
