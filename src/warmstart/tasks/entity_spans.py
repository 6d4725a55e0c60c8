"""From the probabilities of pieces to the tags of words, and from those to entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from warmstart.features import Array, Feature
from warmstart.rows import Span
from warmstart.tasks.class_loss import IGNORED
from warmstart.tasks.tagged_rows import word_runs
from warmstart.tasks.tagging import OUTSIDE, Run, Tagging, runs

Aggregation = Literal["first", "average", "max", "simple"]


@dataclass(frozen=True)
class Found:
    """An entity of a type, `start` to `end` in the text; `score` is the mean probability of its words' tags."""

    name: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Judged:
    """The words that a model judged: start and end in the text (U,) and each label's probability (U, labels)."""

    starts: Array
    ends: Array
    probabilities: Array

    def against(self, gold: Sequence[Span], tagging: Tagging) -> tuple[float, int, int]:
        """The mean cross entropy of the true tags, 0 where there are none; how many are the likeliest; how many."""
        targets = unit_targets(gold, self.starts, self.ends, tagging)
        known = np.flatnonzero(targets != IGNORED)
        likely = self.probabilities[known, targets[known]]
        loss = float(-np.log(np.maximum(likely, 1e-300)).mean()) if len(known) else 0.0
        return loss, int((self.probabilities[known].argmax(axis=1) == targets[known]).sum()), len(known)


@dataclass(frozen=True)
class Units:
    """What gets one tag each: words, or single pieces. Which pieces are of it, `low` to `high`, and where it stands in
    the text, (U,) each."""

    low: Array
    high: Array
    starts: Array
    ends: Array


def join_windows(features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> tuple[Array, Array]:
    """The places (N, 3) and logits (N, labels) of a text's tokens, each from the window that answers for it."""
    places, logits = [], []
    for feature, output in zip(features, outputs, strict=True):
        low, high = feature.meta["owned"]
        places.append(np.frombuffer(feature.meta["places"], dtype=np.int32).reshape(-1, 3)[low:high])
        logits.append(output["logits"][low:high])
    return np.concatenate(places), np.concatenate(logits)


def softmax(logits: Array) -> Array:
    """(N, labels) to probabilities, in double precision."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def find_entities(
    places: Array,
    probabilities: Array,
    tagging: Tagging,
    aggregation: Aggregation,
    words: Sequence[tuple[int, int]] | None,
) -> tuple[list[Found], tuple[str, ...]]:
    """The entities of a text in their order, and a tag for each of `words` if they are given: those of the entities,
    in the model's own scheme.

    A word without a piece, of characters that the tokenizer drops, interrupts no entity. "simple" takes every piece
    for a word, as transformers' pipeline does, unless words are given.
    """
    seen = np.flatnonzero(places[:, 0] < places[:, 1])
    if words is not None:
        units, present = _given_units(places[seen], words)
    elif aggregation == "simple":
        seen = np.arange(len(places))
        units, present = Units(seen, seen + 1, places[:, 0], places[:, 1]), seen
    else:
        units = _word_units(places[seen])
        present = np.arange(len(units.low))
    chosen = _aggregate(probabilities[seen], units, aggregation)
    ids, scores = chosen.argmax(axis=1), chosen.max(axis=1)
    found, marked = [], []
    for name, first, last in runs([tagging.tags[i] for i in ids.tolist()]):
        visible = np.flatnonzero(units.starts[first:last] < units.ends[first:last]) + first
        if len(visible):
            start, end = int(units.starts[visible[0]]), int(units.ends[visible[-1]])
            found.append(Found(name, start, end, float(scores[first:last].mean())))
            marked.append((name, int(present[first]), int(present[last - 1]) + 1))
    return found, () if words is None else written(marked, len(words), tagging)


def written(found: Sequence[Run], length: int, tagging: Tagging) -> tuple[str, ...]:
    """The tags of `length` words that have these spans."""
    tags = [OUTSIDE] * length
    for name, first, last in found:
        tags[first:last] = [tagging.labels[i] for i in tagging.write(name, last - first)]
    return tuple(tags)


def unit_targets(gold: Sequence[Span], starts: Array, ends: Array, tagging: Tagging) -> Array:
    """The label id of each word (U,) by the true spans; IGNORED outside of them where the model has no tag for it."""
    targets = np.full(len(starts), IGNORED if tagging.outside is None else tagging.outside, dtype=np.int64)
    for name, first, last in word_runs(gold, list(zip(starts.tolist(), ends.tolist(), strict=True))):
        targets[first:last] = tagging.write(name, last - first)
    return targets


def _given_units(places: Array, words: Sequence[tuple[int, int]]) -> tuple[Units, Array]:
    """The words that have a piece, and their numbers. Of a piece that reaches into two words both have its tag.

    A given word may be several of the tokenizer's, as Paris-Lyon is: those after the first are trained as inside of an
    entity, whatever the given word is, so only the first one's pieces say its tag.
    """
    ranges = np.array(words, dtype=np.int64).reshape(-1, 2)
    low = np.searchsorted(places[:, 1], ranges[:, 0], side="right")
    high = np.searchsorted(places[:, 0], ranges[:, 1], side="left")
    present = np.flatnonzero(low < high)
    low, high = low[present], high[present]
    begins = np.append(np.flatnonzero(places[:, 2] == 1), len(places))
    high = np.minimum(high, begins[np.searchsorted(begins, low, side="right")])
    return Units(low, high, ranges[present, 0], ranges[present, 1]), present


def _word_units(places: Array) -> Units:
    """The words that begin where `pieces.lay_out` says so."""
    begin = places[:, 2] == 1
    begin[:1] = True  # of a text that was cut on its left, the first word may have begun before
    low = np.flatnonzero(begin)
    high = np.append(low[1:], len(places)).astype(np.int64)[: len(low)]
    ends = np.maximum.reduceat(places[:, 1], low) if len(low) else places[:, 1]
    return Units(low, high, places[low, 0], ends)


def _aggregate(probabilities: Array, units: Units, aggregation: Aggregation) -> Array:
    """One row of probabilities for each unit: (pieces, labels) to (U, labels)."""
    if aggregation == "average":
        sums = np.concatenate([np.zeros((1, probabilities.shape[1])), probabilities.cumsum(axis=0)])
        return np.asarray((sums[units.high] - sums[units.low]) / (units.high - units.low)[:, None])
    if aggregation == "max":
        surest = probabilities.max(axis=1)
        pairs = zip(units.low.tolist(), units.high.tolist(), strict=True)
        return probabilities[np.array([low + int(surest[low:high].argmax()) for low, high in pairs], dtype=np.int64)]
    return probabilities[units.low]
