"""How much of a matrix product's input eight bits would lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from warmstart.features import Array


class Ranges:
    """Lowest, highest and mean square of some arrays over many batches. Padding does not count."""

    def __init__(self, count: int) -> None:
        self._low, self._high = np.zeros(count), np.zeros(count)
        self._squares, self._numbers = np.zeros(count), np.zeros(count)

    def add(self, arrays: Sequence[Array], mask: Array | None) -> None:
        """One batch: arrays (B, T, H), `mask` (B, T), 1 where there is a token; of a pack (1, T, H), all of it."""
        for i, values in enumerate(arrays):
            if mask is not None and values.shape[:2] == mask.shape:
                values = values[mask == 1]
            self._low[i] = min(self._low[i], values.min())
            self._high[i] = max(self._high[i], values.max())
            self._squares[i] += np.square(values, dtype=np.float64).sum()
            self._numbers[i] += values.size

    def loss(self) -> list[float]:
        """The width of each array's range in units of its root mean square: what the steps of eight bits are to it.

        One with a few values far out leaves few steps for all the others.
        """
        rms = np.sqrt(self._squares / np.maximum(self._numbers, 1))
        return ((self._high - self._low) / np.maximum(rms, 1e-30)).tolist()
