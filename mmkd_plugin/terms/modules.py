"""A list of modules that tells a type checker of which kind they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    M = TypeVar('M', bound=nn.Module, covariant=True)

    class Modules(nn.ModuleList, Sequence[M], Generic[M]):
        """``nn.ModuleList``, which alone would give modules of any kind."""

        def __iter__(self) -> Iterator[M]: ...
        def __getitem__(self, index: int) -> M: ...  # type: ignore[override]  # no slices here

else:
    Modules = nn.ModuleList
