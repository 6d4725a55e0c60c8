"""The batches of an epoch, from any position on, made here or by worker processes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from warmstart.errors import TrainingError, WarmstartError, Where
from warmstart.features import Batch
from warmstart.training.batches import Batches

# After so long without a batch a worker is taken for lost: none of them does anything but stack arrays.
WORKER_SECONDS = 300.0


@contextmanager
def fetching(batches: Batches[Batch], epoch: int, position: int, workers: int) -> Iterator[Iterator[Batch]]:
    """The batches of an epoch from `position` on, to be used in a block of this.

    Raises TrainingError "batch-failed", which names the rows; "worker-lost" for a worker that died or says nothing any
    more, with the rows of the batch that was awaited or is next. torch tells of a death by an error in whatever the
    main thread is at, so the block's own errors are looked at too.
    """
    batches.set_epoch(epoch)
    given = position

    def make() -> Generator[Batch]:
        nonlocal given
        loader = DataLoader(
            _Careful(batches),
            batch_size=None,
            sampler=range(position, len(batches)),
            num_workers=workers,
            collate_fn=_itself,
            timeout=WORKER_SECONDS if workers else 0,
            generator=torch.Generator(),  # it draws a seed for its workers, and not from the stream of dropout
        )
        for made in loader:
            if isinstance(made, WarmstartError):
                raise made
            given += 1
            yield made

    try:
        with closing(make()) as made:
            yield made
    except RuntimeError as error:
        if not workers or not tells_of_a_worker(error):
            raise
        rows = _rows(batches, given) if given < len(batches) else []
        raise TrainingError(
            "worker-lost",
            f"a process that collates batches is lost: {str(error).splitlines()[0]}",
            where=Where(source=f"epoch {epoch}, batch {given}", row=rows[0] if rows else None),
            value=f"a batch of {len(rows)} rows was awaited: {rows}" if rows else "all batches had been made",
            fix="train with workers=0, which needs no such process; the same call goes on from the last snapshot",
        ) from None


def tells_of_a_worker(error: Exception) -> bool:
    """Whether this is what torch raises, anywhere in the main thread, for a lost worker of a DataLoader."""
    return isinstance(error, RuntimeError) and "DataLoader" in str(error)


@dataclass(frozen=True)
class _Careful:
    """Batches whose errors are values: an exception that comes out of a worker would lose its place and its kind."""

    batches: Batches[Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, position: int) -> Batch | WarmstartError:
        try:
            return self.batches[position]
        except WarmstartError as error:
            return error
        except Exception as error:
            rows = _rows(self.batches, position)
            return TrainingError(
                "batch-failed",
                f"a batch cannot be made: {error!r}",
                where=Where(row=rows[0]),
                value=f"one of {len(rows)} rows: {rows}",
                fix="look at these rows (counted from 0); remove or repair the one at fault",
            )


def _rows(batches: Batches[Batch], position: int) -> list[int]:
    """The rows of a batch, as they are counted in the file."""
    return sorted(batches.features[i][0].row for i in batches.plan[position])


def _itself(batch: Any) -> Any:
    return batch
