"""The rows of sentence embeddings: which texts and scores they have, and which features those became."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from warmstart.errors import DataError
from warmstart.features import Array, Feature
from warmstart.rows import Field, Row, number

# The texts a row may have: `slot` 0, 1 and 2 of a feature.
TEXTS = ("text", "text_pair", "negative")

# Column names that data sets use for the two texts of a pair, side by side.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "passage"),
    ("query", "document"),
    ("query", "answer"),
    ("question", "answer"),
    ("premise", "hypothesis"),
    ("text_a", "text_b"),
    ("question1", "question2"),
)
_FIRST = tuple(dict.fromkeys(first for first, _ in _PAIRS))

FIELDS = (
    Field("text", ("sentence", "content", "review", "tweet", *_FIRST), doc="the text", text=True),
    Field(
        "text_pair",
        tuple(second for _, second in _PAIRS),
        required=False,
        partner="text",
        partner_aliases=tuple(first for first, _ in _PAIRS),
        doc="a text to compare it with; needed to train",
        text=True,
    ),
    Field("negative", ("hard_negative",), required=False, doc="a text that is to be far from it", text=True),
    Field(
        "score",
        ("similarity_score", "similarity", "label"),
        required=False,
        target=True,
        optional=True,
        doc="how similar the pair is",
    ),
)


def scores_of(rows: Sequence[Row]) -> Array | None:
    """The rows' scores (N,), or None if no row has one."""
    there = [row.get("score") is not None for row in rows]
    if not any(there):
        return None
    wheres = [dataclasses.replace(row.where, field="score") for row in rows]
    if not all(there):
        raise DataError(
            "score-missing",
            "some rows have a score, and this one has none",
            where=wheres[there.index(False)],
            fix="give every row a score, or none",
        )
    return np.array([number(row["score"], where) for row, where in zip(rows, wheres, strict=True)], dtype=np.float64)


def text_key(feature: Feature) -> bytes:
    """A digest of what a model reads of a feature: equal for equal texts."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feature.inputs):
        digest.update(feature.inputs[name].tobytes())
    return digest.digest()


def merge_windows(features: Sequence[Feature], vectors: Any) -> tuple[list[int], list[int], Any]:
    """The texts of a batch: the position of each one's first feature, its slot, and its vector (texts, H).

    The windows of a text are averaged, each weighted by its tokens, as `decode` does.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, feature in enumerate(features):
        groups.setdefault((feature.row, feature.meta["slot"]), []).append(i)
    members = list(groups.values())
    if len(members) < len(features):
        shares = np.zeros((len(members), len(features)), dtype=np.float32)
        for text, pieces in enumerate(members):
            lengths = [features[i].length for i in pieces]
            shares[text, pieces] = np.array(lengths) / sum(lengths)
        vectors = vectors.new_tensor(shares) @ vectors
    return [pieces[0] for pieces in members], [slot for _, slot in groups], vectors
