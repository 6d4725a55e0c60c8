"""Training batches as a map-style dataset: for the loop of this package, and for a person's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from warmstart.batching import collate, plan_epoch
from warmstart.errors import DataError, UsageError
from warmstart.features import Batch, Feature
from warmstart.randomness import generator
from warmstart.rows import Row, read
from warmstart.tasks import Task

T = TypeVar("T")


@dataclass
class Batches(Generic[T]):
    """One epoch of batches, by position: `len(batches)`, `batches[i]`, and `set_epoch` for the next.

    What stands in a batch is a function of (seed, epoch, position) alone, so a `DataLoader` may fetch it in any
    process and a resumed run may start at any position. All features of a row stay in one batch.
    """

    task: Task
    features: list[list[Feature]]  # by row
    seed: int
    batch_size: int | None
    max_tokens: int | None
    convert: Callable[[Batch], T]
    epoch: int = field(default=0, init=False)
    plan: list[list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Plan epoch `epoch`. Call it before the epoch's `iter(loader)`, as with torch's `DistributedSampler`."""
        self.epoch = epoch
        self.plan = self.plan_of(epoch)

    def plan_of(self, epoch: int) -> list[list[int]]:
        """The row indices of each batch of an epoch."""
        lengths = [max(feature.length for feature in features) for features in self.features]
        return plan_epoch(
            lengths,
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            pieces=[len(features) for features in self.features],
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, position: int) -> T:
        features = [feature for row in self.plan[position] for feature in self.features[row]]
        varied = [self.task.vary(feature, self._rng(feature)) for feature in features]
        return self.convert(collate(varied, self.task.pads))

    def _rng(self, feature: Feature) -> Any:
        return generator(self.seed, "vary", self.epoch, feature.row, feature.part)


def make_batches(
    task: Task, rows: list[Row], *, seed: int, batch_size: int | None, max_tokens: int | None
) -> Batches[Batch]:
    """Encode rows once and plan them into batches for the loop.

    Raises UsageError "batch-limit"; DataError for a row without a usable text or label, with its place.
    """
    for name, limit in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if limit is not None and limit < 1:
            raise UsageError("batch-limit", f"{name} must be at least 1", value=limit, fix=f"give {name}=32, or None")
    if not rows:
        raise DataError("no-rows", "there are no rows to train on", fix="check the file, and what --columns selects")
    features: list[list[Feature]] = [[] for _ in rows]
    for feature in task.encode(rows, train=True):
        features[feature.row].append(feature)
    return Batches(task, features, seed, batch_size, max_tokens, convert=_itself)


def batches(
    rows: Any,
    task: Task,
    *,
    max_tokens: int | None = 8192,
    batch_size: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> Batches[dict[str, torch.Tensor]]:
    """Batches for a loop of one's own: mappings of tensors with `labels`, so that `model(**batch).loss` works.

    `rows` is anything `ws.train` takes. Rows of like length stand together, in an order that is a function of
    (seed, epoch); a batch holds at most `max_tokens` tokens, padding counted, and at most `batch_size` rows. Texts are
    tokenized once, here. Each tensor is (rows, tokens), `labels` is (rows,) or (rows, labels).

        loader = DataLoader(ws.batches("train.jsonl", pipe.task), batch_size=None)
        for epoch in range(3):
            loader.dataset.set_epoch(epoch)
            for batch in loader:
                pipe.model(**batch).loss.backward()

    A `DataLoader` with `persistent_workers=True` keeps its first copy of this, and never hears of `set_epoch`.
    Raises UsageError "task-not-trainable", "labels-unknown" or "batch-limit"; DataError for a row without a usable
    text or label, with its place.
    """
    if not task.trainable:
        raise UsageError(
            "task-not-trainable",
            f"{task.name} cannot be trained in this version",
            value=task.name,
            fix='load the checkpoint for another task: ws.load(…, task="text-classification", labels=[…])',
        )
    known = list(read(rows, fields=task.fields, columns=columns, targets=True))
    made = make_batches(task, known, seed=seed, batch_size=batch_size, max_tokens=max_tokens)
    return Batches(task, made.features, seed, batch_size, max_tokens, convert=_model_arguments)


def _itself(batch: Batch) -> Batch:
    return batch


def _model_arguments(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in {**batch.inputs, **batch.targets}.items()}
