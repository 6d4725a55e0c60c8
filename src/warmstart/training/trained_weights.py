"""The weights of a run: as they are trained, and as what would be its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warmstart.checkpoints import load_weights
from warmstart.training.ema import Average
from warmstart.training.vocabulary import WordTable

if TYPE_CHECKING:
    from warmstart.checkpoints.adapters import Adapter


@dataclass(frozen=True)
class TrainedWeights:
    """A model, the average of its weights if there is one, the adapters in it if there are any, and its word table if
    only a part of it is trained."""

    model: Any
    average: Average | None = None
    adapter: Adapter | None = None
    table: WordTable | None = None

    @contextmanager
    def training(self) -> Iterator[None]:
        """In a block of this steps are made; the model is whole after it, and in blocks of `as_result` and
        `as_checkpoint`."""
        with nullcontext() if self.table is None else self.table.training():
            yield

    def after_step(self, step: int) -> None:
        if self.average is not None:
            self.average.update(step)

    @contextmanager
    def as_result(self) -> Iterator[None]:
        """In a block of this the model is the result: the average, merged. What is evaluated is what is saved."""
        if self.average is None:
            with self.as_checkpoint():
                yield
        else:
            with self.average.in_place(), self.as_checkpoint():
                yield

    @contextmanager
    def as_checkpoint(self) -> Iterator[None]:
        """In a block of this the model is one that a checkpoint can hold: that of the last step, merged."""
        with ExitStack() as held:
            if self.table is not None:
                held.enter_context(self.table.whole())
            if self.adapter is not None:
                held.enter_context(self.adapter.merged())
            yield

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The `state_dict()` of the optimizer that trains these weights, for all of them."""
        return optimizer.state_dict() if self.table is None else self.table.optimizer_state()

    def state(self) -> dict[str, Any]:
        """What the checkpoint of a snapshot does not hold, by recipe."""
        return {
            **({} if self.average is None else {"ema": self.average.state()}),
            **({} if self.adapter is None else {"lora": self.adapter.state()}),
        }

    def load(self, checkpoint: Path, state: Mapping[str, Any]) -> None:
        """Go on from a snapshot's checkpoint and state. Raises CheckpointError, and KeyError for another recipe's."""
        if self.adapter is None:
            load_weights(self.model, checkpoint)
        else:
            self.adapter.load(state["lora"])
        if self.average is not None:
            self.average.load(state["ema"])

    def finish(self) -> None:
        """Make the model the result, for good."""
        if self.average is not None:
            self.average.keep()
        if self.adapter is not None:
            self.adapter.keep_merged()
