"""Where the pieces of a text stand, which begin a word, and which window answers for each."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.features import Array

# What BERT's tokenizer splits at: ASCII's symbols, and Unicode's punctuation.
_SYMBOLS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


@dataclass(frozen=True)
class Window:
    """One encoded piece of a text: `places` (T, 3) has start, end and whether a word begins there for each token,
    start = end for one without visible text, -1 for special tokens. Tokens `low` to `high` are those that no other
    window sees in a wider context."""

    places: Array
    low: int
    high: int


def lay_out(text: str, pieces: Sequence[Any], stride: int) -> list[Window]:
    """The windows of a text, which `Tokenizer.encode` made with this stride.

    A word begins where the tokenizer begins one, after white space, and before and after punctuation, so that words
    are much the same for every tokenizer. Places are without surrounding space. Of tokens that two windows share, each
    answers for the half nearer to its middle.
    """
    special = [np.array(piece.special_tokens_mask, dtype=bool) for piece in pieces]
    sizes = [int((~mask).sum()) for mask in special]
    firsts = [index * (sizes[0] - stride) for index in range(len(pieces))]
    places = np.zeros((firsts[-1] + sizes[-1], 3), dtype=np.int32)
    words = np.zeros(len(places), dtype=np.int64)
    for piece, mask, first, size in zip(pieces, special, firsts, sizes, strict=True):
        places[first : first + size, :2] = np.array(piece.offsets, dtype=np.int32).reshape(-1, 2)[~mask]
        numbers = np.array([-1 if word is None else word for word in piece.word_ids], dtype=np.int64)
        words[first : first + size] = numbers[~mask]
    _trim_and_begin(text, places, words)
    seams = [0, *((after + first + size) // 2 for first, size, after in zip(firsts, sizes, firsts[1:], strict=False))]
    seams.append(len(places))
    windows = []
    for index, (mask, first, size) in enumerate(zip(special, firsts, sizes, strict=True)):
        own = np.full((max(len(mask), 1), 3), -1, dtype=np.int32)  # an empty text becomes one padding token
        own[: len(mask)][~mask] = places[first : first + size]
        lead = int(np.argmin(mask)) if size else 0
        windows.append(Window(own, lead + seams[index] - first, lead + seams[index + 1] - first))
    return windows


def _trim_and_begin(text: str, places: Array, words: Array) -> None:
    """Take space off the ends of places, and mark those that begin a word, in place."""
    space, punctuation = _character_kinds(text)
    solid = np.flatnonzero(~space)
    left = np.searchsorted(solid, places[:, 0], side="left")
    right = np.searchsorted(solid, places[:, 1], side="left")
    seen = np.flatnonzero(left < right)
    places[:, 1] = places[:, 0]
    starts, ends = solid[left[seen]], solid[right[seen] - 1] + 1
    places[seen, 0], places[seen, 1] = starts, ends
    spaces = np.concatenate([[0], np.cumsum(space)])
    begin = np.ones(len(seen), dtype=bool)
    apart = spaces[np.maximum(starts[1:], ends[:-1])] > spaces[ends[:-1]]
    split = (words[seen][1:] != words[seen][:-1]) | punctuation[starts[1:]] | punctuation[ends[:-1] - 1]
    begin[1:] = apart | (split & (starts[1:] >= ends[:-1]))  # one character in several pieces is never split
    places[seen, 2] = begin


def _character_kinds(text: str) -> tuple[Array, Array]:
    """Which characters are white space, and which punctuation: (len(text),) each."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds, which = np.unique(codes, return_inverse=True)
    characters = [chr(code) for code in kinds]
    space = np.array([character.isspace() for character in characters], dtype=bool)
    marks = np.array([c in _SYMBOLS or unicodedata.category(c).startswith("P") for c in characters], dtype=bool)
    return space[which], marks[which]


def units_of(places: Array, *, words: bool = True) -> tuple[Array, Array, Array]:
    """The words of consecutive places (N, 3): position of each first piece, start and end in the text, (U,) each.
    Without `words` every piece is one, also of white space."""
    if not words:
        return np.arange(len(places)), places[:, 0], places[:, 1]
    seen = np.flatnonzero(places[:, 0] < places[:, 1])
    if not len(seen):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty
    begin = places[seen, 2] == 1
    begin[0] = True  # of a text cut on its left, the first word may have begun before
    first = np.flatnonzero(begin)
    return seen[first], places[seen[first], 0], np.maximum.reduceat(places[seen, 1], first)
