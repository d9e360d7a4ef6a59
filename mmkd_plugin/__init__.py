"""Knowledge distillation that attaches to the models of the OpenMMLab 2.x ecosystem."""

from .compat import check_stack

check_stack()

from . import hooks, losses  # noqa: E402,F401  (register their components; data sets load on demand)
from .attachment import attach, detach  # noqa: E402
from .distilled_config import distill  # noqa: E402
from .distiller import Distiller  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['Distiller', 'attach', 'detach', 'distill', '__version__']
