"""What a config may say about the weight of a term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..checks import check_keys, check_number, nearest, shown

AUTO = 'auto'

# Targets of weight='auto', by what the term compares: feature maps (those of an image classifier
# apart), or rows of logits by the kind of the head. How they were found: docs/weights.md.
TARGETS: dict[str, float] = dict(
    feature=2.0, image_feature=0.1, dense=0.3, roi=1.0, query=0.1, pixel=0.3, image=1.0
)


@dataclass(frozen=True)
class Weight:
    """The weight of a term as its config says it.

    Attributes:
        number: a fixed weight; None if it is calibrated.
        ratio: the target of a calibrated one, in multiples of the task's gradient; None for the
            default of the term's kind (``'auto'``), see :data:`TARGETS`.
    """

    number: float | None = None
    ratio: float | None = None

    @property
    def is_auto(self) -> bool:
        return self.number is None

    def target(self, kind: str) -> float:
        """The gradient ratio that a term of this kind is calibrated to.

        Args:
            kind: a key of :data:`TARGETS`.
        """
        return TARGETS.get(kind, TARGETS['feature']) if self.ratio is None else self.ratio


def parse_weight(value: Any, where: str) -> Weight:
    """Reads ``weight`` of a term: a number, ``'auto'`` or ``dict(ratio=0.3)``.

    Raises:
        ValueError: for anything else, a negative or infinite number, a ratio that is not above 0.
    """
    if value == AUTO:
        return Weight()
    if isinstance(value, dict):
        check_keys(value, ('ratio',), where)
        if 'ratio' not in value:
            raise ValueError(f'{where}={shown(value)} lacks its target: dict(ratio=0.3).')
        ratio = check_number(value['ratio'], f'{where}.ratio')
        if ratio <= 0:
            raise ValueError(
                f'{where}.ratio={shown(value["ratio"])} must be above 0: it is the gradient of the '
                "term in multiples of the task's. weight=0 switches a term off."
            )
        return Weight(ratio=ratio)
    if isinstance(value, str):
        raise ValueError(
            f"{where}={shown(value)} is neither a number nor 'auto' nor dict(ratio=0.3); "
            f'{nearest(value, [AUTO])}.'
        )
    return Weight(number=check_number(value, where, 0))
