"""Planning, windows and collation, by their properties."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart import batching
from warmstart.batching import Shapes, collate, plan, plan_epoch, windows
from warmstart.features import Feature, Pad

lengths = st.lists(st.integers(0, 300), max_size=200)
some = settings(max_examples=150, deadline=None)


def padded(batch: list[int], all_lengths: list[int]) -> int:
    return len(batch) * max(all_lengths[i] for i in batch)


def test_docstrings() -> None:
    assert doctest.testmod(batching).failed == 0


# --- plan -----------------------------------------------------------------------------------------------------------


@given(lengths, st.integers(1, 2000), st.none() | st.integers(1, 50))
@some
def test_a_plan_has_each_index_once_within_the_budget(given: list[int], budget: int, rows: int | None) -> None:
    batches = plan(given, max_tokens=budget, max_rows=rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(given)))
    for batch in batches:
        assert len(batch) == 1 or padded(batch, given) <= budget
        assert rows is None or len(batch) <= rows
    order = [given[i] for batch in batches for i in batch]
    assert order == sorted(given, reverse=True)  # the batch that may not fit into memory comes first
    assert all(batches)


@given(lengths, st.integers(1, 2000), st.integers(0, 200))
@some
def test_a_batch_is_parted_where_its_padding_would_be_more(given: list[int], budget: int, most: int) -> None:
    """And not before: the next feature would have brought too much padding, or too many tokens."""
    batches = plan(given, max_tokens=budget, max_padding=most)
    assert [i for batch in batches for i in batch] == [i for batch in plan(given, max_tokens=budget) for i in batch]
    for batch, after in pairwise([*batches, []]):
        longest = given[batch[0]]
        assert padded(batch, given) - sum(given[i] for i in batch) <= most
        if after:
            wasted = padded(batch, given) - sum(given[i] for i in batch) + longest - given[after[0]]
            assert wasted > most or (len(batch) + 1) * longest > budget


def cost(shapes: Shapes, batches: list[list[int]], given: list[int]) -> int:
    assert shapes.call_tokens is not None
    widths = [shapes.width(len(batch), given[batch[0]]) for batch in batches]
    return sum(len(batch) * width + shapes.call_tokens for batch, width in zip(batches, widths, strict=True))


@given(lengths, st.integers(1, 2000), st.integers(0, 200), st.booleans())
@some
def test_batches_are_cut_where_they_cost_least(given: list[int], budget: int, call: int, rounded: bool) -> None:
    """Never dearer than parted by padding alone."""
    shapes = Shapes(budget, call_tokens=call, rounded=rounded, limit=600)
    batches = shapes.plan(given, max_tokens=10**6)
    parted = plan(given, max_tokens=budget, max_padding=call)
    assert [i for batch in batches for i in batch] == [i for batch in parted for i in batch]
    assert all(batches) and all(len(batch) == 1 or padded(batch, given) <= budget for batch in batches)
    assert cost(shapes, batches, given) <= cost(shapes, parted, given)


def cheapest(shapes: Shapes, ordered: list[int], budget: int) -> int:
    """What the best of all ways to cut lengths, longest first, costs."""
    assert shapes.call_tokens is not None
    least = [0]
    for end in range(1, len(ordered) + 1):
        ways = []
        for start in range(end - 1, -1, -1):
            rows = end - start
            if rows > 1 and rows * ordered[start] > budget:
                break
            ways.append(least[start] + shapes.call_tokens + rows * shapes.width(rows, ordered[start]))
        least.append(min(ways))
    return least[-1]


def test_the_cuts_of_what_waits_in_a_server_are_close_to_the_best() -> None:
    shapes = Shapes(768, call_tokens=48, rounded=True, limit=512)
    random = np.random.default_rng(0)
    best = greedy = found = 0
    for count in (4, 8, 16, 32, 64) * 8:
        given = np.clip(random.normal(27, 13, count), 5, 67).astype(int).tolist()
        best += cheapest(shapes, sorted(given, reverse=True), 768)
        greedy += cost(shapes, plan(given, max_tokens=768, max_padding=48), given)
        found += cost(shapes, shapes.plan(given, max_tokens=768), given)
    assert best <= found < 1.01 * best < 1.03 * best < greedy


@given(st.integers(1, 600), st.integers(1, 512), st.none() | st.integers(512, 600))
@some
def test_widths_are_rounded_up_a_little(rows: int, longest: int, limit: int | None) -> None:
    width = Shapes(512, rounded=True, limit=limit).width(rows, longest)
    assert 0 <= width - longest < 8 and rows * (width - longest) < 32
    assert limit is None or width <= limit
    assert Shapes(512, limit=limit).width(rows, longest) == longest
    shapes = {Shapes(512, rounded=True).width(min(rows, 4), n) for n in range(1, 65)}
    assert shapes == {8, 16, 24, 32, 40, 48, 56, 64}


def test_no_width_is_beyond_the_limit() -> None:
    """Not even where a feature is: it fails in the model, as it would without rounding."""
    assert [Shapes(512, rounded=True, limit=50).width(1, n) for n in (41, 48, 49, 50, 51)] == [48, 48, 50, 50, 51]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), max_size=80), st.integers(1, 3000))
@some
def test_rows_of_several_pieces_count_as_many(rows: list[tuple[int, int]], budget: int) -> None:
    """A long text brings a window for each of its pieces: they all stand in its row's batch."""
    sizes, pieces = [size for size, _ in rows], [count for _, count in rows]
    epoch = plan_epoch(sizes, seed=0, epoch=0, max_tokens=budget, pieces=pieces)
    for batches in (plan(sizes, max_tokens=budget, pieces=pieces), epoch):
        assert sorted(i for batch in batches for i in batch) == list(range(len(rows)))
        for batch in batches:
            held = sum(pieces[i] for i in batch) * max(sizes[i] for i in batch)
            assert len(batch) == 1 or held <= budget
    assert plan(sizes, max_tokens=budget, pieces=[1] * len(rows)) == plan(sizes, max_tokens=budget)


@given(lengths, st.integers(1, 2000))
@some
def test_no_batch_of_a_plan_could_take_the_next_feature(given: list[int], budget: int) -> None:
    batches = plan(given, max_tokens=budget)
    for batch, following in pairwise(batches):
        assert padded([*batch, following[0]], given) > budget


@given(lengths, st.integers(1, 2000))
@some
def test_equal_lengths_keep_their_order(given: list[int], budget: int) -> None:
    order = [i for batch in plan(given, max_tokens=budget) for i in batch]
    assert order == sorted(range(len(given)), key=lambda i: (-given[i], i))


# --- plan_epoch -----------------------------------------------------------------------------------------------------

limits = st.tuples(st.none() | st.integers(1, 40), st.none() | st.integers(1, 2000)).filter(any)


@given(lengths, st.integers(0, 2**40), st.integers(0, 1000), limits)
@some
def test_an_epoch_has_each_row_once_within_its_limits(
    given: list[int], seed: int, epoch: int, limit: tuple[int | None, int | None]
) -> None:
    size, budget = limit
    batches = plan_epoch(given, seed=seed, epoch=epoch, batch_size=size, max_tokens=budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(given)))
    assert all(batches)
    for batch in batches:
        assert size is None or len(batch) <= size
        assert budget is None or len(batch) == 1 or padded(batch, given) <= budget
    again = plan_epoch(given, seed=seed, epoch=epoch, batch_size=size, max_tokens=budget)
    assert again == batches


@given(lengths, st.integers(0, 99), st.integers(1, 40))
@some
def test_only_one_batch_of_an_epoch_is_short(given: list[int], seed: int, size: int) -> None:
    batches = plan_epoch(given, seed=seed, epoch=0, batch_size=size)
    assert len(batches) == -(-len(given) // size)
    assert sum(len(batch) < size for batch in batches) <= 1


def test_only_one_batch_is_short_over_many_groups() -> None:
    rng = np.random.default_rng(0)
    many = rng.integers(3, 200, 5003).tolist()
    for size in (7, 32, 2000):
        batches = plan_epoch(many, seed=0, epoch=0, batch_size=size)
        assert sum(len(batch) < size for batch in batches) == 1
        assert sorted(i for batch in batches for i in batch) == list(range(5003))


def test_epochs_and_seeds_differ_in_order_and_in_company() -> None:
    given = (list(range(5, 45)) * 50)[:2000]
    plans = [plan_epoch(given, seed=seed, epoch=epoch, batch_size=32) for seed in (0, 1) for epoch in (0, 1, 2)]
    companies = [{frozenset(batch) for batch in batches} for batches in plans]
    for i, company in enumerate(companies):
        for other in companies[i + 1 :]:
            assert len(company & other) < 0.1 * len(company)


def test_batches_come_in_random_order_of_length() -> None:
    """Long batches all at the beginning of an epoch would be a curriculum nobody asked for."""
    rng = np.random.default_rng(0)
    given = rng.integers(3, 200, 3200).tolist()
    means = [np.mean([given[i] for i in batch]) for batch in plan_epoch(given, seed=0, epoch=0, batch_size=16)]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.2


def test_rows_of_like_length_stand_together() -> None:
    rng = np.random.default_rng(0)
    given = np.clip(rng.lognormal(3, 0.7, 3200), 3, 256).astype(int).tolist()

    def waste(batches: list[list[int]]) -> float:
        return sum(padded(batch, given) for batch in batches) / sum(given) - 1

    assert waste(plan_epoch(given, seed=0, epoch=0, batch_size=32)) < 0.1
    shuffled = rng.permutation(3200).reshape(-1, 32).tolist()
    assert waste(shuffled) > 1.0  # what it is measured against


# --- windows --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 50), max_size=300),
    st.integers(1, 10),
    st.integers(1, 100),
    st.integers(1, 500),
)
@some
def test_windows_keep_order_and_bounds(weights: list[int], first: int, largest: int, heaviest: int) -> None:
    items = list(enumerate(weights))
    found = list(windows(items, first=first, largest=largest, weight=lambda item: item[1], heaviest=heaviest))
    assert [item for window in found for item in window] == items
    assert all(found)
    for number, window in enumerate(found):
        assert len(window) <= (first if number == 0 else max(first, largest))
        assert sum(weight for _, weight in window[:-1]) < heaviest
    assert not found or len(found[0]) <= first


def test_windows_grow_and_read_no_further_than_they_must() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    sizes = []
    for window in windows(items(), first=2, largest=20, weight=lambda _: 1, heaviest=10**9):
        sizes.append(len(window))
        assert taken == sum(sizes)
    assert sizes == [2, 8, 20, 20, 20, 20, 10]


# --- collate --------------------------------------------------------------------------------------------------------

PADS = {"input_ids": Pad(7), "mask": Pad(0), "left": Pad(-1, side="left"), "labels": Pad(per_token=False)}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
@some
def test_collation_pads_each_array_by_its_rule(sizes: list[int]) -> None:
    features = [
        Feature(
            row=i,
            part=0,
            inputs={
                "input_ids": np.arange(1, size + 1),
                "mask": np.ones(size, np.int64),
                "left": np.arange(1, size + 2, dtype=np.int32),
            },
            targets={"labels": np.array([i, i + 0.5], dtype=np.float32)},
            length=size,
        )
        for i, size in enumerate(sizes)
    ]
    batch = collate(features, PADS)
    longest = max(sizes)
    assert len(batch) == len(sizes)
    assert batch.features == tuple(features)
    assert batch.tokens == sum(sizes) == batch.inputs["mask"].sum()
    assert batch.inputs["input_ids"].shape == batch.inputs["mask"].shape == (len(sizes), longest)
    assert batch.inputs["left"].shape == (len(sizes), longest + 1)  # each array has its own longest
    assert batch.targets["labels"].shape == (len(sizes), 2)
    for i, size in enumerate(sizes):
        assert batch.inputs["input_ids"][i].tolist() == [*range(1, size + 1), *[7] * (longest - size)]
        assert batch.inputs["left"][i].tolist() == [*[-1] * (longest - size), *range(1, size + 2)]
    assert batch.inputs["left"].dtype == np.int32
    assert batch.targets["labels"].dtype == np.float32


def test_collation_to_a_width() -> None:
    """Inputs a token are made wider by what the function says of them; targets and what is no list of tokens stay."""
    pads = {"ids": Pad(0), "left": Pad(7, side="left"), "label": Pad(-100), "one": Pad(per_token=False)}
    arrays = {"ids": np.array([1, 2]), "left": np.array([3, 4]), "one": np.array(5)}
    features = [Feature(0, 0, arrays, {"label": np.array([1, 1])}, length=2)]
    batch = collate(features, pads, width=lambda rows, longest: rows + longest + 1)
    assert batch.inputs["ids"].tolist() == [[1, 2, 0, 0]] and batch.inputs["left"].tolist() == [[7, 7, 3, 4]]
    assert batch.inputs["one"].tolist() == [5] and batch.targets["label"].tolist() == [[1, 1]]
    assert collate(features, pads).inputs["ids"].tolist() == [[1, 2]]


def test_collation_copies() -> None:
    """A batch that is changed must not change the features, which serve every epoch."""
    feature = Feature(0, 0, {"input_ids": np.array([1, 2])}, {"labels": np.array(1)}, length=2)
    batch = collate([feature], PADS)
    batch.inputs["input_ids"][0, 0] = 99
    batch.targets["labels"][0] = 99
    assert feature.inputs["input_ids"].tolist() == [1, 2]
    assert feature.targets["labels"] == 1


def test_an_array_without_a_rule_is_our_fault() -> None:
    with pytest.raises(KeyError, match="strange"):
        collate([Feature(0, 0, {"strange": np.array([1])}, length=1)], PADS)
