"""Knowledge distillation that attaches to the models of the OpenMMLab 2.x ecosystem."""

from .compat import check_stack

check_stack()

from . import hooks, losses  # noqa: E402,F401  (register their components; data sets load on demand)
from .attachment import attach, detach  # noqa: E402
from .distiller import Distiller  # noqa: E402
from .editing.distilled import distill  # noqa: E402

__version__ = '0.1.0'  # setup.py reads it without importing anything

__all__ = ['Distiller', '__version__', 'attach', 'detach', 'distill']
