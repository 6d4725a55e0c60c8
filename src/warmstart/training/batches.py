"""Training batches as a map-style dataset: for the loop of this package, and for a person's own."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from warmstart.batching import collate, plan_apart, plan_epoch
from warmstart.errors import DataError, UsageError, Where
from warmstart.features import Batch, Feature
from warmstart.randomness import generator
from warmstart.rows import Row, read
from warmstart.tasks import Task
from warmstart.tasks.contract import ComparesRows

log = logging.getLogger("warmstart")

_LOOKED_AT = 64  # rows, to see whether a task varies its inputs

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
    left_out: tuple[int, ...] = ()  # rows that the task, saying why, found nothing to learn from
    epoch: int = field(default=0, init=False)
    plan: list[list[int]] = field(init=False, repr=False)
    keys: list[frozenset[bytes]] = field(init=False, repr=False)  # by row: what no other row of its batch may have

    def __post_init__(self) -> None:
        compares = self.task if self.task.couples_rows and isinstance(self.task, ComparesRows) else None
        self.keys = [compares.apart(own) if compares else frozenset() for own in self.features]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Plan epoch `epoch`. Call it before the epoch's `iter(loader)`, as with torch's `DistributedSampler`."""
        self.epoch = epoch
        self.plan = self.plan_of(epoch)

    def plan_of(self, epoch: int) -> list[list[int]]:
        """The row indices of each batch of an epoch."""
        lengths = [max(feature.length for feature in features) for features in self.features]
        if self.task.couples_rows:
            assert self.batch_size is not None, "checked where batches are made"
            return plan_apart(lengths, self.keys, seed=self.seed, epoch=epoch, batch_size=self.batch_size)
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

    def varies(self) -> bool:
        """Whether the task changes its inputs from epoch to epoch, by the first rows."""
        for feature in (feature for row in self.features[:_LOOKED_AT] for feature in row):
            try:
                varied = self.task.vary(feature, generator(self.seed, "vary", 0, feature.row, feature.part))
            except Exception:  # who fetches the row meets it again, and names the row
                return True
            if any(not np.array_equal(varied.inputs[name], array) for name, array in feature.inputs.items()):
                return True
        return False

    def _rng(self, feature: Feature) -> Any:
        return generator(self.seed, "vary", self.epoch, feature.row, feature.part)


def make_batches(
    task: Task, rows: list[Row], *, seed: int, batch_size: int | None, max_tokens: int | None
) -> Batches[Batch]:
    """Encode rows once and plan them into batches for the loop.

    Raises UsageError "batch-limit" or "rows-coupled"; DataError for a row without a usable text or label, at its place,
    and "nothing-to-compare" where rows learn from each other and no batch has two that could.
    """
    for name, limit in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if limit is not None and limit < 1:
            raise UsageError(
                "batch-limit",
                f"{name} must be at least 1",
                where=Where(field=name),
                value=limit,
                fix=f"give {name}=32, or None",
            )
    if task.couples_rows and (batch_size is None or max_tokens is not None):
        raise UsageError(
            "rows-coupled",
            f"{task.name} learns from all rows of a batch together: a batch has a number of rows, and no budget",
            value=f"batch_size={batch_size}, max_tokens={max_tokens}",
            fix="give batch_size=32 and max_tokens=None",
        )
    if not rows:
        raise DataError("no-rows", "there are no rows to train on", fix="check the file, and what --columns selects")
    features: list[list[Feature]] = [[] for _ in rows]
    for feature in task.encode(rows, train=True):
        features[feature.row].append(feature)
    left_out = tuple(row for row, own in enumerate(features) if not own)
    if len(left_out) == len(rows):
        raise DataError(
            "no-rows",
            "none of the rows has anything to learn from",
            where=rows[0].where,
            value=f"{len(rows)} rows",
            fix="look at the warnings before this: they say what the rows lack",
        )
    made = Batches(task, [own for own in features if own], seed, batch_size, max_tokens, _itself, left_out)
    if task.couples_rows and isinstance(task, ComparesRows):
        _check_company(made, task, rows)
    return made


def _check_company(made: Batches[Batch], task: ComparesRows, rows: list[Row]) -> None:
    """Say which batches of the first epoch are small, and which teach nothing; refuse to train where all are such."""
    assert made.batch_size is not None, "checked before rows are encoded"
    count, planned = len(made.features), len(made.plan)
    usual = count / math.ceil(count / made.batch_size)
    small = sum(2 * len(batch) < usual for batch in made.plan)
    lacking = [task.lacks([feature for row in batch for feature in made.features[row]]) for batch in made.plan]
    lack = Counter(words for words in lacking if words is not None)
    [(most, idle)] = lack.most_common(1) or [("", 0)]
    shared = max(Counter(key for keys in made.keys for key in keys).values(), default=1)
    why = f"; rows that share a text stand apart, and one text is in {shared:,} rows" if shared > 1 else ""
    if sum(lack.values()) == planned:
        raise DataError(
            "nothing-to-compare",
            f"no batch can teach anything, as none has {most}: each loss would be 0",
            where=rows[0].where,
            value=f"{count:,} rows in {planned:,} batches, batch_size={made.batch_size}{why}",
            fix=f"give every batch {most}; batch_size is to be 2 or more",
        )
    if small:
        log.warning(
            "%d of %d batches have fewer than half of the %.0f rows that batch_size=%d would give them "
            "(%.1f in the mean, %d at least)%s",
            small, planned, usual, made.batch_size, count / planned, min(map(len, made.plan)), why,
        )  # fmt: skip
    if idle:
        log.warning("%d of %d batches do not have %s: they teach nothing, and their loss is 0", idle, planned, most)


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
    Where rows learn from each other (in-batch negatives) give `batch_size` and max_tokens=None.
    Raises UsageError "task-not-trainable", "labels-unknown", "batch-limit" or "rows-coupled"; DataError for a row
    without a usable text or label, with its place, and "nothing-to-compare".
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
    return Batches(task, made.features, seed, batch_size, max_tokens, _model_arguments, made.left_out)


def _itself(batch: Batch) -> Batch:
    return batch


def _model_arguments(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in {**batch.inputs, **batch.targets}.items()}
