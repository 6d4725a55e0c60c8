"""Where memory does not hold a micro-batch: it is cut, and the step stays what it was.

A step's gradient is a weighted sum over its rows, so a cut changes it by rounding only. From which step on a run cuts
is kept with the run: a resumed one cuts at the same steps, and keeps its bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from warmstart.batching import collate
from warmstart.errors import TrainingError, Where
from warmstart.features import Batch, Feature, Pad
from warmstart.tasks import Task

log = logging.getLogger("warmstart")


@dataclass(frozen=True)
class Cut:
    """From optimizer step `from_step` on (from 1), each micro-batch is cut into `parts`."""

    from_step: int
    parts: int


@dataclass
class Cuts:
    """The cuts of a run so far, oldest first. `tell` hears of a new one before a step is made with it."""

    made: list[Cut] = field(default_factory=list)
    tell: Callable[[Cut], None] | None = None

    def parts_at(self, step: int) -> int:
        """Into how many parts the micro-batches of a step are cut; 1: not at all."""
        return max((cut.parts for cut in self.made if cut.from_step <= step), default=1)

    def apply(self, batches: Sequence[Batch], step: int, pads: Mapping[str, Pad]) -> list[Batch]:
        """The micro-batches of a step as they are computed."""
        parts = self.parts_at(step)
        return [piece for batch in batches for piece in cut_batch(batch, parts, pads)]

    def halve(self, step: int, pieces: Sequence[Batch], task: Task) -> None:
        """The pieces of a step did not fit: cut twice as finely from here on.

        Raises TrainingError "memory-exhausted" where that is impossible: the rows of a batch learn from each other, or
        a piece is one row already.
        """
        if task.couples_rows:
            raise exhausted(
                step,
                f"{task.name} learns from all rows of a batch together, so a batch is not cut: that would change what "
                "is learned",
                "give a smaller batch_size, which is another training, or a shorter max_length",
            )
        if all(len(_rows(piece)) == 1 for piece in pieces):
            longest = max((feature for piece in pieces for feature in piece.features), key=lambda f: f.length)
            raise exhausted(
                step,
                "not even one row at a time fits",
                "give a shorter max_length, or train a smaller model",
                where=Where(row=longest.row),
                value=f"{longest.length} tokens",
            )
        cut = Cut(step, 2 * self.parts_at(step))
        if self.tell is not None:
            self.tell(cut)
        self.made.append(cut)
        log.warning(
            "out of memory in step %d: from here on micro-batches are cut into %d parts; steps keep all their rows",
            step,
            cut.parts,
        )


def cut_batch(batch: Batch, parts: int, pads: Mapping[str, Pad]) -> list[Batch]:
    """A batch in at most `parts` pieces of about as many rows, in order; all features of a row stay together."""
    rows = list(_rows(batch).values())
    parts = min(parts, len(rows))
    if parts == 1:
        return [batch]
    edges = [len(rows) * i // parts for i in range(parts + 1)]
    return [collate([feature for row in rows[begin:end] for feature in row], pads) for begin, end in pairwise(edges)]


def release(device: str) -> None:
    """Give back what the allocator of a GPU holds and nobody uses."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def exhausted(step: int, why: str, fix: str, *, where: Where | None = None, value: object = None) -> TrainingError:
    """The error of a step that memory cannot hold: "memory-exhausted"."""
    return TrainingError(
        "memory-exhausted",
        f"memory ran out in step {step}, and {why}",
        where=where or f"step {step}",
        value=value,
        fix=fix,
    )


def _rows(batch: Batch) -> dict[int, list[Feature]]:
    found: dict[int, list[Feature]] = {}
    for feature in batch.features:
        found.setdefault(feature.row, []).append(feature)
    return found
