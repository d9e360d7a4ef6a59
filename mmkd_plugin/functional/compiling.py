"""``is_compiling()``: whether torch.compile is tracing the caller, under which it is a constant."""

try:
    from torch.compiler import is_compiling
except ImportError:
    from torch._utils import is_compiling  # torch < 2.3

__all__ = ['is_compiling']
