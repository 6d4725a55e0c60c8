"""When to save, where nobody said: so often that it costs a small share of the run's time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

SHARE = 0.02  # of the time, that saving may take
FIRST_SECONDS = 30.0  # of training, that are worth a snapshot


@dataclass
class Pace:
    """Snapshots every `every` steps; None: when the time since the last one is 50 times what that one cost.

    Where snapshots are made changes nothing in the weights, so the clock may decide it.
    """

    every: int | None
    _last: float = field(default_factory=time.monotonic)
    _wait: float = FIRST_SECONDS

    def due(self, step: int) -> bool:
        """Is a snapshot due after this step."""
        return step % self.every == 0 if self.every else time.monotonic() - self._last >= self._wait

    def saved(self, seconds: float) -> None:
        """One was made, or tried, in so many seconds."""
        self._last = time.monotonic()
        self._wait = max(FIRST_SECONDS, seconds / SHARE)
