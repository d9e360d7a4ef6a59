"""When a term acts, and with what share of its weight."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import check_bool, check_int


@dataclass(frozen=True)
class Schedule:
    """Window and linear ramp of a term's weight.

    With t the iteration (or epoch, ``by_epoch``) counted from 0, the factor is 0 outside
    ``begin <= t < end``, 0 when ``(t - begin)`` is no multiple of ``interval``, and otherwise
    ``min(1, (t - begin + 1) / warmup)`` (1 without warm-up).

    Args:
        begin: first iteration or epoch.
        end: first one no longer in the window; ``None`` means never.
        warmup: length of the linear ramp.
        by_epoch: whether begin, end and warmup count epochs.
        interval: act at each ``interval``-th iteration only (always iterations).

    Raises:
        ValueError: values of another type, negative or contradictory ones.
    """

    begin: int = 0
    end: int | None = None
    warmup: int = 0
    by_epoch: bool = False
    interval: int = 1

    def __post_init__(self) -> None:
        check_int(self.begin, 'begin', 0)
        check_int(self.warmup, 'warmup', 0)
        check_int(self.interval, 'interval', 1)
        check_bool(self.by_epoch, 'by_epoch')
        if self.end is not None and check_int(self.end, 'end') <= self.begin:
            raise ValueError(f'end={self.end!r} must come after begin={self.begin} (or be None).')

    @property
    def is_constant(self) -> bool:
        return self == Schedule(by_epoch=self.by_epoch)

    @property
    def text(self) -> str:
        """The schedule in words, such as ``iterations 500 to 999, ramp over 100``."""
        unit = 'epoch' if self.by_epoch else 'iteration'
        parts = []
        if self.end is not None:
            parts.append(f'{unit}s {self.begin} to {self.end - 1}')
        elif self.begin:
            parts.append(f'from {unit} {self.begin}')
        if self.warmup > 1:
            parts.append(f'ramp over {self.warmup} {unit}s')
        if self.interval > 1:
            parts.append(f'every {self.interval} iterations')
        return ', '.join(parts) or 'always'

    def lasts(self, iteration: int, epoch: int) -> bool:
        """Whether it has begun and not ended, be it its turn at this iteration or not."""
        now = epoch if self.by_epoch else iteration
        return now >= self.begin and (self.end is None or now < self.end)

    def factor(self, iteration: int, epoch: int) -> float:
        """Share of the weight at ``iteration`` of ``epoch`` (both from 0), in [0, 1]."""
        if not self.lasts(iteration, epoch):
            return 0.0
        now = epoch if self.by_epoch else iteration
        since = iteration if self.by_epoch else iteration - self.begin
        if since % self.interval:
            return 0.0
        return min(1.0, (now - self.begin + 1) / self.warmup) if self.warmup else 1.0

    def turns(self, iterations: int, per_epoch: int | None, at_most: int, first: int = 0) -> int:
        """In how many iterations of a run it acts, from ``first`` on, counted no further than
        ``at_most``.

        ``per_epoch`` is the length of an epoch; None for a loop that stays in its first.
        """
        found = 0
        for i in range(first, iterations):
            epoch = 0 if per_epoch is None else i // per_epoch
            found += self.factor(i, epoch) > 0
            if found == at_most:
                break
        return found
