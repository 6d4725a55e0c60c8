"""Which weights of a run are the result, and when to stop: by validation, if there is one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Selection:
    """Remembers the best evaluation so far, by a rank whose larger value is better."""

    patience: int | None
    best: tuple[float, float] | None = None  # the rank: (metric, -loss)
    best_step: int = 0
    since_best: int = 0

    def offer(self, step: int, rank: tuple[float, float]) -> bool:
        """Take in an evaluation; True if it is the best so far. Of equal ones the first stays."""
        if self.best is None or rank > self.best:
            self.best, self.best_step, self.since_best = rank, step, 0
            return True
        self.since_best += 1
        return False

    @property
    def exhausted(self) -> bool:
        """Has `patience` run out."""
        return self.patience is not None and self.since_best >= self.patience
