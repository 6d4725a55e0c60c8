"""Which features share a batch, and how they are stacked.

Padding is computed like words, so features of like length belong together. Planning is a pure function of lengths
(and, for training, of seed and epoch); nothing here draws from a generator that lives anywhere else.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from warmstart.features import Array, Batch, Feature, Pad
from warmstart.randomness import generator

T = TypeVar("T")

# Rows per group of training batches that are sorted by length together: wide enough that little padding is left, and
# narrow enough that a batch's company still changes from epoch to epoch.
GROUP_ROWS = 1600
# The most tokens by which rounding makes a batch wider.
_ROUNDING_TOKENS = 32
# Batches that are tried for a row which must stand apart from others.
_NEAR = 64


def plan(
    lengths: Sequence[int],
    *,
    max_tokens: int,
    max_rows: int | None = None,
    max_padding: int | None = None,
    pieces: Sequence[int] | None = None,
) -> list[list[int]]:
    """Batches of positions, longest first; each holds at most `max_tokens` tokens, its padding counted.

    `max_padding`: the most tokens of padding a batch may have; None, any number. `pieces` says how many features of at
    most that length each position brings; None is one each. What is longer than the whole budget goes alone. Longest
    first, so that a batch that does not fit into memory fails at the start and not at the end.

    >>> plan([3, 9, 4, 8], max_tokens=18)
    [[1, 3], [2, 0]]
    >>> plan([30, 29, 5, 5], max_tokens=1000, max_padding=20)
    [[0, 1], [2, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    longest = held = padding = 0
    for i in order:
        own = 1 if pieces is None else pieces[i]
        batch = batches[-1] if batches else None
        padding += own * (longest - lengths[i])
        wasteful = max_padding is not None and padding > max_padding
        if batch is None or (held + own) * longest > max_tokens or len(batch) == max_rows or wasteful:
            batches.append([i])
            longest, held, padding = lengths[i], own, 0
        else:
            batch.append(i)
            held += own
    return batches


@dataclass(frozen=True)
class Shapes:
    """The shapes of batches at which a runtime is quickest.

    `max_tokens`: padded tokens of a batch; a caller's larger number is no use. `call_tokens`: what a call costs beside
    its tokens, counted in tokens, where padding is computed; None where padding costs nothing. `rounded`: each new
    shape costs time and memory, so that widths are rounded up, to `limit` at most, the most tokens the model takes.
    """

    max_tokens: int
    call_tokens: int | None = None
    rounded: bool = False
    limit: int | None = None

    def plan(self, lengths: Sequence[int], *, max_tokens: int) -> list[list[int]]:
        """Batches of positions, longest first, of at most `max_tokens` padded tokens before widths are rounded."""
        budget = min(max_tokens, self.max_tokens)
        batches = plan(lengths, max_tokens=budget, max_padding=self.call_tokens)
        return batches if self.call_tokens is None else self._cut_anew(batches, lengths, budget, self.call_tokens)

    def _cut_anew(
        self, batches: Sequence[list[int]], lengths: Sequence[int], budget: int, call: int
    ) -> list[list[int]]:
        """The batches, each cut off from the next where the two cost least together, or joined with it."""

        def cost(count: int, longest: int) -> float:
            if count > 1 and count * longest > budget:
                return math.inf
            return call + count * self.width(count, longest) if count else 0

        ended, last = list[list[int]](), list[int]()
        for batch in batches:
            rows = last + batch
            tokens = [lengths[i] for i in rows] + [0]
            costs = [cost(k, tokens[0]) + cost(len(rows) - k, tokens[k]) for k in range(1, len(rows) + 1)]
            cut = 1 + costs.index(min(costs))
            if cut < len(rows):
                ended.append(rows[:cut])
            last = rows[cut:] or rows
        return [*ended, last] if last else []

    def width(self, rows: int, longest: int) -> int:
        """How wide a batch of `rows` features is made. To a multiple of 8 where they are few, of less where they are
        more, so that a batch gains fewer than `_ROUNDING_TOKENS`.

        >>> Shapes(512, rounded=True).width(3, 17), Shapes(512, rounded=True).width(9, 17), Shapes(512).width(3, 17)
        (24, 18, 17)
        """
        if not self.rounded:
            return longest
        step = next(step for step in (8, 4, 2, 1) if step == 1 or step * rows <= _ROUNDING_TOKENS)
        width = -(-longest // step) * step
        return width if self.limit is None else max(longest, min(width, self.limit))


def plan_epoch(
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    pieces: Sequence[int] | None = None,
) -> list[list[int]]:
    """One epoch of training batches over rows with these lengths: each row once, in random company of like length.

    Rows are shuffled, sorted by length inside groups of about `GROUP_ROWS`, cut into batches of `batch_size` rows or
    of `max_tokens` padded tokens (`pieces` as in `plan`), and the batches are shuffled. A pure function of its
    arguments, so that the position inside an epoch is an integer and nothing else has to be remembered.
    """
    rng = generator(seed, "order", epoch)
    order = rng.permutation(len(lengths)).tolist()
    group = GROUP_ROWS if batch_size is None else max(1, GROUP_ROWS // batch_size) * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), group):
        members = sorted(order[start : start + group], key=lambda i: -lengths[i])
        if max_tokens is not None:
            held = None if pieces is None else [pieces[i] for i in members]
            planned = plan([lengths[i] for i in members], max_tokens=max_tokens, max_rows=batch_size, pieces=held)
            batches += [[members[k] for k in batch] for batch in planned]
        else:
            size = batch_size or len(members)
            batches += [members[k : k + size] for k in range(0, len(members), size)]
    return [batches[k] for k in rng.permutation(len(batches)).tolist()]


def plan_apart(
    lengths: Sequence[int], keys: Sequence[frozenset[bytes]], *, seed: int, epoch: int, batch_size: int
) -> list[list[int]]:
    """One epoch of batches for rows that learn from each other: of `batch_size` rows each, or one less where the rows
    do not divide, so that no row is left with few others.

    `keys` are what a row must not share with another of its batch, such as its texts: a text in two rows would be
    right and wrong at once. Only where too many rows share one, there are batches beyond these, and some are smaller.
    In other ways as `plan_epoch`.
    """
    rng = generator(seed, "order", epoch)
    order = rng.permutation(len(lengths)).tolist()
    for start in range(0, len(order), GROUP_ROWS):
        order[start : start + GROUP_ROWS] = sorted(order[start : start + GROUP_ROWS], key=lambda i: -lengths[i])
    count = math.ceil(len(order) / batch_size)
    sizes = [len(order) // count + (k < len(order) % count) for k in range(count)]
    batches: list[list[int]] = [[] for _ in range(count)]
    taken: list[set[bytes]] = [set() for _ in range(count)]
    left: list[int] = []
    first = 0  # the first batch with room
    for row in order:
        near = range(first, min(first + _NEAR, count))  # so that rows of like length stay together
        fits = (k for k in near if len(batches[k]) < sizes[k] and taken[k].isdisjoint(keys[row]))
        if (place := next(fits, None)) is None:
            left.append(row)
            continue
        batches[place].append(row)
        taken[place] |= keys[row]
        while first < count and len(batches[first]) == sizes[first]:
            first += 1
    alone = [row for i, row in enumerate(left) if i >= _NEAR or not _squeeze(row, batches, sizes, keys)]
    batches = [batch for batch in batches if batch] + _greedy(alone, keys, batch_size)
    return [batches[k] for k in rng.permutation(len(batches)).tolist()]


def _squeeze(row: int, batches: list[list[int]], sizes: list[int], keys: Sequence[frozenset[bytes]]) -> bool:
    """Put a row that fits no batch with room into a full one, whose row it replaces moves to the room."""
    for k in [k for k, batch in enumerate(batches) if len(batch) < sizes[k]][:_NEAR]:
        held = frozenset[bytes]().union(*(keys[other] for other in batches[k]))
        if held.isdisjoint(keys[row]):
            batches[k].append(row)
            return True
        for batch in batches[:_NEAR]:
            rivals = {i for i, other in enumerate(batch) if not keys[other].isdisjoint(keys[row])}
            for i, other in enumerate(batch):
                if batch is not batches[k] and rivals <= {i} and held.isdisjoint(keys[other]):
                    batch[i] = row
                    batches[k].append(other)
                    return True
    return False


def _greedy(rows: Sequence[int], keys: Sequence[frozenset[bytes]], batch_size: int) -> list[list[int]]:
    """Batches of rows that share much: each takes what still goes together, among the next `GROUP_ROWS`."""
    waiting = deque(rows)
    batches: list[list[int]] = []
    while waiting:
        batch, taken, passed = list[int](), set[bytes](), list[int]()
        while waiting and len(batch) < batch_size and len(passed) < GROUP_ROWS:
            row = waiting.popleft()
            if taken.isdisjoint(keys[row]):
                batch.append(row)
                taken |= keys[row]
            else:
                passed.append(row)
        waiting.extendleft(reversed(passed))
        batches.append(batch)
    return batches


def collate(
    features: Sequence[Feature], pads: Mapping[str, Pad], *, width: Callable[[int, int], int] | None = None
) -> Batch:
    """Stack features into one batch; every array is padded by the rule `pads` has for its name.

    Per-token arrays of shape (t,) become (B, T), T their own longest, or for inputs what `width(B, longest)` makes of
    it; arrays of a fixed shape are stacked as they are.
    """
    return Batch(
        features=tuple(features),
        inputs=_stack([feature.inputs for feature in features], pads, width),
        targets=_stack([feature.targets for feature in features], pads),
    )


def windows(
    items: Iterable[T], *, first: int, largest: int, weight: Callable[[T], int], heaviest: int
) -> Iterator[list[T]]:
    """Consecutive windows that grow from `first` to `largest` items: early results come early, later work is dense.

    A window also closes when its items' weights reach `heaviest`, so that memory is bounded by more than a count.
    """
    size, window, total = first, list[T](), 0
    for item in items:
        window.append(item)
        total += weight(item)
        if len(window) == size or total >= heaviest:
            yield window
            size, window, total = min(largest, size * 4), [], 0
    if window:
        yield window


def _stack(
    columns: Sequence[Mapping[str, Array]], pads: Mapping[str, Pad], width: Callable[[int, int], int] | None = None
) -> dict[str, Array]:
    return {name: _pad([column[name] for column in columns], pads[name], width) for name in columns[0]}


def _pad(arrays: Sequence[Array], pad: Pad, width: Callable[[int, int], int] | None) -> Array:
    if not pad.per_token:
        return np.stack(arrays)
    longest = max(len(array) for array in arrays)
    longest = longest if width is None else width(len(arrays), longest)
    stacked = np.full((len(arrays), longest), pad.value, dtype=arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        if pad.side == "right":
            row[: len(array)] = array
        else:
            row[longest - len(array) :] = array
    return stacked
