"""The walk from rows to predictions: order, bounded memory, and what happens when memory runs out."""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.batching import Shapes, plan
from warmstart.engine import predict
from warmstart.engine.predict import FIRST_WINDOW, LARGEST_WINDOW, WINDOW_CHARACTERS, by_row, run_features
from warmstart.errors import DataError, WarmstartError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.rows import Row


@dataclass(frozen=True)
class Echo:
    """A stand-in for a task: a row `{"id", "sizes"}` becomes one feature a size; a prediction tells what came back."""

    pads: Mapping[str, Pad] = field(default_factory=lambda: {"ids": Pad(0)})

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        for index, row in enumerate(rows):
            if "bad" in row:
                raise DataError("field-missing", "no", fix="none", where=row.where)
            for part, size in enumerate(row["sizes"]):
                yield Feature(index, part, {"ids": np.full(size, 1000 * row["id"] + part + 1)}, length=size)

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> Any:
        assert [feature.part for feature in features] == list(range(len(row["sizes"])))
        return row["id"], [(int(output["first"]), int(output["sum"])) for output in outputs]


@dataclass
class Counting:
    """A runtime that computes sums, and has no memory for more than `most` padded tokens."""

    most: int = 10**9
    device: str = "toy"
    shapes: Shapes = Shapes(10**9)
    ran: list[tuple[int, int]] = field(default_factory=list)
    refused: list[tuple[int, int]] = field(default_factory=list)

    def run(self, batch: Batch) -> dict[str, Array]:
        ids = batch.inputs["ids"]
        if ids.size > self.most:
            self.refused.append(ids.shape)
            raise MemoryError(f"{ids.size} tokens")
        self.ran.append(ids.shape)
        return {"first": ids[:, 0], "sum": ids.sum(axis=1)}


def row(number: int, *sizes: int) -> Row:
    return Row({"id": number, "sizes": sizes or (3,)})


def expected(rows: Sequence[Row]) -> list[Any]:
    return [
        (r["id"], [(1000 * r["id"] + p + 1, (1000 * r["id"] + p + 1) * s) for p, s in enumerate(r["sizes"])])
        for r in rows
    ]


def run(rows: Any, runtime: Any, budget: int = 100) -> list[Any]:
    return list(predict(Echo(), runtime, rows, max_tokens=budget))  # type: ignore[arg-type]


# --- order ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), max_size=150),
    st.sampled_from([1, 7, 60, 200, 10**6]),
    st.sampled_from([60, 130, 10**6]),
)
@settings(max_examples=80, deadline=None)
def test_rows_come_back_in_order_under_any_budget(sizes: list[list[int]], budget: int, memory: int) -> None:
    rows = [row(i, *each) for i, each in enumerate(sizes)]
    runtime = Counting(most=memory)
    assert run(iter(rows), runtime, budget) == expected(rows)
    assert all(count * width <= max(budget, width) for count, width in runtime.ran)


def test_windows_of_a_row_scatter_over_batches() -> None:
    """A long row must not make a batch over the budget: its windows travel alone and meet again."""
    rows = [row(0, *[16] * 100), row(1, 4), row(2, *[16] * 3)]
    runtime = Counting()
    assert run(rows, runtime, 256) == expected(rows)
    assert max(count * width for count, width in runtime.ran) <= 256
    assert len(runtime.ran) == 7


@given(st.lists(st.lists(st.integers(1, 45), min_size=1, max_size=3), max_size=60), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_a_runtime_says_which_shapes_it_is_quick_at(sizes: list[list[int]], call_tokens: int) -> None:
    """Batches are parted where that costs less than padding, widths rounded up to the limit; answers stay."""
    rows = [row(i, *each) for i, each in enumerate(sizes)]
    runtime = Counting(shapes=Shapes(300, call_tokens=call_tokens, rounded=True, limit=45))
    assert run(rows, runtime, 10**6) == expected(rows)
    assert all(width <= 45 and (width % 8 == 0 or width == 45) for count, width in runtime.ran if count <= 4)
    computed, given = sum(count * width for count, width in runtime.ran), sum(map(sum, sizes))
    parted = plan([length for each in sizes for length in each], max_tokens=300, max_padding=call_tokens)
    assert computed - given + len(runtime.ran) * call_tokens <= len(parted) * (2 * call_tokens + 32)


def test_only_what_runs_over_tokens_decides_the_width() -> None:
    """A feature may be longer than its inputs, by its targets: a model has no position for these."""

    class Longer(Echo):
        def encode(self, rows: Sequence[Row]) -> Iterator[Feature]:
            return (replace(feature, length=feature.length + 60) for feature in super().encode(rows))

    runtime = Counting()
    assert list(predict(Longer(), runtime, [row(0, 5)])) == expected([row(0, 5)])  # type: ignore[arg-type]
    assert runtime.ran == [(1, 5)]


def test_by_row_gathers_positions() -> None:
    features = [Feature(r, p, {}) for r, p in ((0, 0), (2, 0), (2, 1), (0, 1))]
    assert by_row(features, 4) == [[0, 3], [], [1, 2], []]


def test_no_rows_no_predictions() -> None:
    runtime = Counting()
    assert run([], runtime) == []
    assert runtime.ran == []


# --- how far it reads, and what it keeps ------------------------------------------------------------------------------


def test_memory_is_bounded_over_a_long_stream() -> None:
    """Twenty thousand rows: the reader is never more than a window ahead, and nothing piles up."""
    read = given_out = furthest = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for i in range(20_000):
            read += 1
            yield Row({"id": i, "sizes": (3,), "ballast": "x" * 500 + str(i)})

    stream = predict(Echo(), Counting(), rows(), max_tokens=4096)  # type: ignore[arg-type]
    next(stream)
    assert read <= FIRST_WINDOW  # the first answer waits for few rows
    given_out = 1
    tracemalloc.start()
    for _ in stream:
        given_out += 1
        furthest = max(furthest, read - given_out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert given_out == 20_000
    assert furthest < LARGEST_WINDOW
    assert peak < 20e6  # a window's rows, features and outputs; all rows at once would be over 40 MB


def test_long_documents_close_a_window() -> None:
    read = 0

    def rows() -> Iterator[Row]:
        nonlocal read
        for i in range(100):
            read += 1
            yield Row({"id": i, "sizes": (3,), "text": "x" * (WINDOW_CHARACTERS // 4)})

    next(predict(Echo(), Counting(), rows(), max_tokens=100))  # type: ignore[arg-type]
    assert read == 4


def test_a_bad_row_keeps_the_windows_before_it() -> None:
    rows = [row(i) for i in range(FIRST_WINDOW + 5)]
    rows[FIRST_WINDOW + 2] = Row({"bad": True})
    stream = predict(Echo(), Counting(), rows, max_tokens=100)  # type: ignore[arg-type]
    assert [next(stream) for _ in range(FIRST_WINDOW)] == expected(rows[:FIRST_WINDOW])
    with pytest.raises(DataError):
        next(stream)


# --- out of memory --------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_split_until_it_does() -> None:
    rows = [row(i, 10) for i in range(40)]
    runtime = Counting(most=30)
    assert run(rows, runtime, 400) == expected(rows)
    assert runtime.refused[0] == (40, 10)
    assert all(count <= 3 for count, _ in runtime.ran)
    healthy = Counting()
    assert run(rows, healthy, 400) == expected(rows)
    assert healthy.ran == [(40, 10)]


def test_one_feature_that_does_not_fit_is_an_error_with_a_way_out() -> None:
    with pytest.raises(WarmstartError) as caught:
        run([row(0, 10), row(1, 50)], Counting(most=30), 400)
    assert caught.value.code == "out-of-memory"
    assert caught.value.value == 50
    assert "toy" in caught.value.what
    assert "max_length" in caught.value.fix
    assert caught.value.__context__ is None  # and with it no traceback that keeps the batch alive


def test_a_retry_does_not_hold_the_failed_batch() -> None:
    """An error's traceback keeps the tensors of its frames: a retry inside `except` has no memory to retry in."""

    class Block:
        pass

    alive: list[weakref.ref[Block]] = []

    @dataclass
    class Heavy:
        device: str = "toy"
        shapes: Shapes = Shapes(10**9)

        def run(self, batch: Batch) -> dict[str, Array]:
            assert not any(reference() for reference in alive), "the failed batch is still in memory"
            activations = Block()
            alive.append(weakref.ref(activations))
            if len(batch) > 1:
                raise MemoryError
            return {"first": batch.inputs["ids"][:, 0], "sum": batch.inputs["ids"].sum(axis=1)}

    rows = [row(i) for i in range(4)]
    assert run(rows, Heavy()) == expected(rows)
    assert len(alive) == 7


def test_other_errors_are_not_retried() -> None:
    @dataclass
    class Broken:
        device: str = "toy"
        shapes: Shapes = Shapes(10**9)
        calls: int = 0

        def run(self, batch: Batch) -> dict[str, Array]:
            self.calls += 1
            raise ZeroDivisionError

    broken = Broken()
    with pytest.raises(ZeroDivisionError):
        run([row(0), row(1)], broken)
    assert broken.calls == 1


def test_outputs_keep_the_order_of_features() -> None:
    features = [Feature(i, 0, {"ids": np.full(size, i + 1)}, length=size) for i, size in enumerate((5, 50, 1, 20))]
    outputs = run_features(Echo(), Counting(), features, max_tokens=60)  # type: ignore[arg-type]
    assert [int(output["first"]) for output in outputs] == [1, 2, 3, 4]
