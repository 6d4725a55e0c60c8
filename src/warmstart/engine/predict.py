"""Rows to predictions, for a task and a runtime: encode → plan → run → decode, in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from warmstart.batching import Shapes, collate, windows
from warmstart.errors import WarmstartError
from warmstart.features import Array, Batch, Feature
from warmstart.rows import Row
from warmstart.tasks import Prediction, Task
from warmstart.tasks.contract import Generates, NeedsModel

# Padded tokens a batch may hold. Beyond this a GPU gains little for encoders of common size; see `Runtime.shapes`.
MAX_TOKENS = 4096

# Rows that are sorted by length together. The first window is small, so that a first answer does not wait for
# thousands of rows; a window also ends at this much text, so that a stream of long documents stays in memory.
FIRST_WINDOW, LARGEST_WINDOW, WINDOW_CHARACTERS = 64, 4096, 4_000_000

# Tokens that are encoded before they are run, of a task that gives many features a row (texts times labels).
PART_TOKENS = 1 << 20


class Runtime(Protocol):
    """What executes a batch."""

    @property
    def device(self) -> str: ...

    @property
    def shapes(self) -> Shapes: ...

    def run(self, batch: Batch) -> dict[str, Array]: ...


@runtime_checkable
class Freezes(Protocol):
    """A runtime that answers quicker with weights that nobody changes any more."""

    def frozen(self) -> Runtime: ...


def frozen(runtime: Runtime) -> Runtime:
    """`runtime` for somebody who answers for long with what it is now, as a server does."""
    return runtime.frozen() if isinstance(runtime, Freezes) else runtime


def predict(
    task: Task,
    runtime: Runtime,
    rows: Iterable[Row],
    *,
    max_tokens: int = MAX_TOKENS,
    encode: Callable[[Sequence[Row]], Iterator[Feature]] | None = None,
) -> Iterator[Any]:
    """One prediction a row, in row order, with bounded memory: rows are read a window at a time.

    `encode` makes the features if it is not `task.encode`; so a task is judged whose loss needs the targets.
    Nothing but the model is shared between calls: several threads may predict with one task and one runtime.
    Raises WarmstartError "out-of-memory" for a text that does not fit alone, "output-not-a-number" for one that the
    model answers with NaN, and what the task's `encode` raises.
    """
    for window in windows(
        rows, first=FIRST_WINDOW, largest=LARGEST_WINDOW, weight=_characters, heaviest=WINDOW_CHARACTERS
    ):
        done = 0
        for features in _in_parts((encode or task.encode)(window)):
            outputs = run_features(task, runtime, features, max_tokens=max_tokens)
            for members in by_row(features, features[-1].row + 1)[done:]:
                yield decode_row(task, window[done], [features[i] for i in members], [outputs[i] for i in members])
                done += 1
        assert done == len(window), "encode gives every row a feature"


def prepare(task: Task, runtime: Runtime) -> Task:
    """The task with what it computes once with its model, such as the vectors of its labels; most compute nothing."""
    if not isinstance(task, NeedsModel):
        return task
    return task.prepare(lambda features: run_features(task, runtime, features, max_tokens=MAX_TOKENS))


def run_features(
    task: Task, runtime: Runtime, features: Sequence[Feature], *, max_tokens: int
) -> list[dict[str, Array]]:
    """Each feature's outputs, in the order of `features`; batches are planned by length."""
    outputs: list[dict[str, Array]] = [{} for _ in features]
    for members in runtime.shapes.plan([feature.length for feature in features], max_tokens=max_tokens):
        for i, output in zip(members, run_batch(task, runtime, [features[i] for i in members]), strict=True):
            outputs[i] = output
    return outputs


def by_row(features: Sequence[Feature], rows: int) -> list[list[int]]:
    """The positions of each row's features."""
    members: list[list[int]] = [[] for _ in range(rows)]
    for i, feature in enumerate(features):
        members[feature.row].append(i)
    return members


def _in_parts(features: Iterator[Feature]) -> Iterator[list[Feature]]:
    """Features in parts of whole rows and of about PART_TOKENS tokens: a row may give hundreds."""
    part: list[Feature] = []
    tokens = 0
    for feature in features:
        if tokens >= PART_TOKENS and feature.row > part[-1].row:
            yield part
            part, tokens = [], 0
        part.append(feature)
        tokens += feature.length
    if part:
        yield part


def run_batch(task: Task, runtime: Runtime, features: Sequence[Feature]) -> list[dict[str, Array]]:
    """Each feature's outputs, from one batch; from halves of it where the device has no memory for the whole, or where
    a task that generates wants fewer rows.

    Raises WarmstartError "out-of-memory" for a feature that does not fit alone, and what the runtime raises.
    """
    if isinstance(task, Generates) and len(features) > 1:
        most = max(1, task.rows_at_most(max(feature.length for feature in features)))
        if len(features) > most:
            parts = [features[start : start + most] for start in range(0, len(features), most)]
            return [output for part in parts for output in run_batch(task, runtime, part)]
    try:
        outputs = runtime.run(collate(features, task.pads, width=runtime.shapes.width))
    except MemoryError:
        outputs = None  # nothing is retried in here, where the error's traceback holds the failed batch in memory
    if outputs is not None:
        return [{name: array[i] for name, array in outputs.items()} for i in range(len(features))]
    if len(features) == 1:
        raise WarmstartError(
            "out-of-memory",
            f"one text of {features[0].length} tokens does not fit into the memory of {runtime.device}",
            value=features[0].length,
            fix='use device="cpu", a smaller checkpoint, or long_text="windows" with a lower max_length',
        )
    half = len(features) // 2
    return [*run_batch(task, runtime, features[:half]), *run_batch(task, runtime, features[half:])]


def decode_row(task: Task, row: Row, features: Sequence[Feature], outputs: Sequence[dict[str, Array]]) -> Prediction:
    """A row's prediction from all its features and their outputs. Raises WarmstartError "output-not-a-number"."""
    _check_numbers(row, outputs)
    return task.decode(row, features, outputs)


def _check_numbers(row: Row, outputs: Sequence[dict[str, Array]]) -> None:
    """The best of NaN and NaN is whatever stands first: no answer is better than that one."""
    if any(np.isnan(array).any() for output in outputs for array in output.values()):
        raise WarmstartError(
            "output-not-a-number",
            "the model answers this row with NaN",
            where=row.where,
            fix="look for NaN among the checkpoint's weights, or load it in a wider type: dtype='float32'",
        )


def _characters(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str))
