"""From start and end logits over windows to answers: the best spans of all windows, and how likely there is none.

A span's score is its start logit plus its end logit; that of no answer is the first token's ([CLS]) in the window where
it is lowest. Both are as in BERT's scripts for SQuAD (J. Devlin et al., "BERT" (2019), section 4.3), but nothing is
pruned: every span of every window is weighed, so that probabilities are of all spans and not of some best twenty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.features import Array


@dataclass(frozen=True)
class Window:
    """What a model says of one window of T tokens.

    `spans`: (T, 2), each token's characters of the context, end exclusive; (-1, -1) for any other token and for one
    that is only space. `start`, `end`: (T,) logits.
    """

    spans: Array
    start: Array
    end: Array


@dataclass(frozen=True)
class Spans:
    """The best spans, best first: `characters` (K, 2) and probabilities (K,), K at most what was asked for.

    `none`: the probability that there is no answer. It and those of all spans, also of the unnamed, sum to 1.
    """

    characters: Array
    scores: Array
    none: float

    @property
    def none_or_best(self) -> float:
        """The probability of no answer where only that and the best span are possible: 1 without any span."""
        return self.none / (self.none + self.scores[0]) if len(self.scores) else 1.0


def token_spans(piece: Any, context: str) -> Array:
    """Each token's characters of the context, (T, 2) int64, as `Window.spans` has them.

    `piece` is an encoding of (question, context). Space at a token's ends is left out, which byte-level tokenizers
    count with the word that follows.
    """
    spans = np.full((max(len(piece.ids), 1), 2), -1, dtype=np.int64)
    for i, (sequence, (start, end)) in enumerate(zip(piece.sequence_ids, piece.offsets, strict=True)):
        if sequence == 1:
            token = context[start:end]
            if text := token.strip():
                start += token.index(text[0])
                spans[i] = start, start + len(text)
    return spans


def target_tokens(spans: Array, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of the characters `start` to `end`; None where this window does not hold them all.

    >>> target_tokens(np.array([[-1, -1], [0, 3], [4, 9], [10, 12]]), 4, 12)
    (2, 3)
    """
    (inside,) = np.nonzero((spans[:, 1] > start) & (spans[:, 0] < end) & (spans[:, 0] >= 0))
    if not len(inside) or spans[inside[0], 0] > start or spans[inside[-1], 1] < end:
        return None
    return int(inside[0]), int(inside[-1])


def best_spans(windows: Sequence[Window], *, longest: int, count: int) -> Spans:
    """The `count` best distinct spans of at most `longest` tokens over all windows of one context, in their order.

    A span that several windows hold has the best of their scores. Of equal scores the earliest and shortest comes
    first. Memory is that of a few windows, however many there are.
    """
    none = min(float(window.start[0]) + float(window.end[0]) for window in windows)
    log_total = none
    open_ended = best = _Scored(np.zeros((0, 2), np.int64), np.zeros(0))
    for window in windows:
        held = _spans_of(window, longest)
        # What begins before this window is in none of those to come: it has its final score.
        final = open_ended.characters[:, 0] < held.characters[:, 0].min(initial=np.iinfo(np.int64).max)
        log_total = np.logaddexp(log_total, _log_sum_exp(open_ended.scores[final]))
        best = best.and_more(open_ended.where(final)).best(count)
        open_ended = open_ended.where(~final).and_more(held).distinct()
    log_total = np.logaddexp(log_total, _log_sum_exp(open_ended.scores))
    best = best.and_more(open_ended).best(count)
    return Spans(best.characters, np.exp(best.scores - log_total), float(np.exp(none - log_total)))


def window_loss(window: Window, first: int, last: int) -> float:
    """The mean of both cross entropies, in nats: of the answer's first token and of its last, over all tokens."""
    losses = [_log_sum_exp(logits) - float(logits[at]) for logits, at in ((window.start, first), (window.end, last))]
    return sum(losses) / 2


@dataclass(frozen=True)
class _Scored:
    """Spans (N, 2) and their scores (N,)."""

    characters: Array
    scores: Array

    def where(self, mask: Array) -> _Scored:
        return _Scored(self.characters[mask], self.scores[mask])

    def and_more(self, other: _Scored) -> _Scored:
        both = (self.characters, other.characters), (self.scores, other.scores)
        return _Scored(np.concatenate(both[0]), np.concatenate(both[1]))

    def best(self, count: int) -> _Scored:
        order = np.lexsort((self.characters[:, 1], self.characters[:, 0], -self.scores))[:count]
        return _Scored(self.characters[order], self.scores[order])

    def distinct(self) -> _Scored:
        """Each span once, with its best score."""
        if not len(self.scores):
            return self
        order = np.lexsort((self.characters[:, 1], self.characters[:, 0]))
        characters = self.characters[order]
        changes = (characters[1:] != characters[:-1]).any(axis=1)
        firsts = np.flatnonzero(np.concatenate([[True], changes]))
        return _Scored(characters[firsts], np.maximum.reduceat(self.scores[order], firsts))


def _spans_of(window: Window, longest: int) -> _Scored:
    """Every span of a window, of at most `longest` tokens."""
    inside = window.spans[:, 0] >= 0
    start = np.where(inside, window.start.astype(np.float64), -np.inf)
    end = np.where(inside, window.end.astype(np.float64), -np.inf)
    reach = np.concatenate([end, np.full(longest - 1, -np.inf)])
    scores = start[:, None] + np.lib.stride_tricks.sliding_window_view(reach, longest)  # (T, longest)
    first, extra = np.nonzero(scores > -np.inf)
    characters = np.stack([window.spans[first, 0], window.spans[first + extra, 1]], axis=1)
    return _Scored(characters, scores[first, extra])


def _log_sum_exp(values: Array) -> float:
    """In float64; minus infinity of nothing."""
    values = values.astype(np.float64)
    top = float(values.max(initial=-np.inf))
    return top + float(np.log(np.exp(values - top).sum())) if len(values) else top
