"""A series of logged numbers, of which only what robust comparisons need is kept."""

from __future__ import annotations

from collections import deque
from statistics import median

# Values that are the start of a series, values of a block, and values before stillness is judged.
START = 5
BLOCK = 50
LONG = 8 * BLOCK
# What still counts as the same: relative to the level, and to the noise of single values.
SAME = 0.05
SAME_PARTS = 0.5  # four parts of 100 values or more differ by less in 19 of 20 cases
SAME_START = 1.0  # the median of 5 values has an error of 0.6


class Series:
    """The values of one number of the log since it was first seen.

    Kept are the first values, the last ones, and median and spread of each block between: three
    numbers for 50 iterations.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_zero = True  # all values so far are exactly 0
        self.start: list[float] = []
        self.recent: deque[float] = deque(maxlen=BLOCK)
        self.blocks: list[float] = []
        self._spreads: list[float] = []

    def add(self, value: float) -> None:
        self.count += 1
        self.is_zero = self.is_zero and value == 0
        if len(self.start) < START:
            self.start.append(value)
        self.recent.append(value)
        if self.count % BLOCK == 0:
            middle = median(self.recent)
            self.blocks.append(middle)
            # Times 1.48 a median deviation is the standard deviation of a normal distribution.
            self._spreads.append(1.48 * median(abs(x - middle) for x in self.recent))

    @property
    def first(self) -> float:
        """Median of the first values."""
        return median(self.start)

    @property
    def last(self) -> float:
        """Median of the last values."""
        return median(self.recent)

    @property
    def highest(self) -> float:
        """The highest level that the series has had."""
        return max([self.first, self.last, *self.blocks])

    @property
    def is_still(self) -> bool:
        """Whether nothing has moved since the first values: by more than 5 %, or out of the noise.

        Compared are the medians of the first values and of the four quarters of all. A series
        that falls at once and then stays has moved, and so has one that comes back.
        """
        if self.count < LONG:
            return False
        size = len(self.blocks) // 4
        parts = [median(self.blocks[i * size : (i + 1) * size]) for i in range(3)]
        parts.append(median(self.blocks[3 * size :]))
        noise, level = median(self._spreads), abs(median(parts))
        apart, moved = max(parts) - min(parts), abs(self.first - median(parts))
        if max(apart, moved) > SAME * level:
            return False
        return noise == 0 or (apart <= SAME_PARTS * noise and moved <= SAME_START * noise)
