"""BLEU and chrF of a corpus, as sacrebleu computes them, with intervals.

Both are functions of counts that add up over rows, so a resample costs one product of matrices. They run from 0 to 100,
as everybody reports them. Source of the details: M. Post, "A call for clarity in reporting BLEU scores", WMT 2018, and
the signatures `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp` and `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no` of the
package published with it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import UsageError
from warmstart.metrics.interval import RESAMPLES, Metric, Statistic, Values, Weights, bootstrap, require_rows

Floats = NDArray[np.float64]

_WORDS = 4  # BLEU's longest n-gram, in words
_CHARACTERS = 6  # chrF's, in characters
_BETA2 = 4.0  # chrF weighs recall twice as much as precision: beta squared

# mteval-v13a: punctuation stands alone, but for apostrophes, for dashes that follow no digit, and for points and commas
# inside numbers.
_SPLITS = (
    (re.compile(r"([!-&(-+/:-@\[-`{-~])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    effective_order: bool = False,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric:
    """BLEU of the corpus, from 0 to 100, with a bootstrap interval over rows: 13a words, exponential smoothing.

    One reference a row. It is 0 where no text has four words; `effective_order` leaves out the n-grams that are too
    long for every text instead, which is meant for single sentences.

    Source: K. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002.
    Raises DataError `no-rows`, UsageError `metric-shape`, and as `interval.bootstrap` does.

    >>> round(bleu(["the cat sat on the mat today"], ["the cat sat on the mat"]).value, 2)
    80.91
    """
    counts = bleu_counts(predictions, references)
    return _metric(bleu_statistic(counts, effective_order), len(counts), seed, resamples, confidence)


def chrf(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Metric:
    """chrF2 of the corpus, from 0 to 100, with a bootstrap interval over rows: character n-grams of 1 to 6, no spaces.

    One reference a row. Source: M. Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015.
    Raises as `bleu` does.

    >>> round(chrf(["the cat sat on the mat today"], ["the cat sat on the mat"]).value, 2)
    93.49
    """
    counts = chrf_counts(predictions, references)
    return _metric(chrf_statistic(counts), len(counts), seed, resamples, confidence)


def chrf_scores(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """Each row's own chrF2, (N,), from 0 to 100. The corpus's is no mean of these. Raises UsageError `metric-shape`.

    >>> chrf_scores(["a cat", "a dog"], ["a cat", "one bird"]).round(1)
    array([100. ,   7.8])
    """
    return _chrf(chrf_counts(predictions, references).astype(np.float64))


def tokenize_13a(text: str) -> str:
    """A text as BLEU counts its words, one space between them.

    >>> tokenize_13a('She said "3.5-4, no?"')
    'She said " 3.5 - 4 , no ? "'
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, split in _SPLITS:
        text = pattern.sub(split, text)
    return " ".join(text.split())


def bleu_counts(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """What BLEU sums up of each row, (N, 4, 3): n-grams in both texts, in the prediction, in the reference.

    Raises UsageError `metric-shape`.
    """
    return _counted(predictions, references, lambda text: tokenize_13a(text).split(), _WORDS)


def chrf_counts(predictions: Sequence[str], references: Sequence[str]) -> NDArray[np.int64]:
    """What chrF sums up of each row, (N, 6, 3), as `bleu_counts` of characters. Raises UsageError `metric-shape`."""
    counts = _counted(predictions, references, lambda text: "".join(text.split()), _CHARACTERS)
    counts[:, :, 1] *= counts[:, :, 2] > 0  # n-grams that are too long for the reference are not held against a text
    return counts


def _counted(
    predictions: Sequence[str],
    references: Sequence[str],
    units_of: Callable[[str], Sequence[Hashable]],
    longest: int,
) -> NDArray[np.int64]:
    """n-grams of each row, (N, longest, 3): in both, in the prediction, in the reference; units are those of n = 1."""
    if len(predictions) != len(references):
        raise UsageError(
            "metric-shape",
            "predictions and references must be as many",
            value=f"{len(predictions)} and {len(references)} rows",
            fix="give one predicted and one true text for each row",
        )
    counts = np.zeros((len(predictions), longest, 3), np.int64)
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        given, wanted = units_of(prediction), units_of(reference)
        for n in range(1, longest + 1):
            ours, theirs = _ngrams(given, n), _ngrams(wanted, n)
            counts[row, n - 1] = (ours & theirs).total(), ours.total(), theirs.total()
    return counts


def _ngrams(units: Sequence[Hashable], n: int) -> Counter[Hashable]:
    return Counter(tuple(units[i : i + n]) for i in range(len(units) - n + 1))


def bleu_statistic(counts: NDArray[Any], effective_order: bool = False) -> Statistic:
    """BLEU of rows with these counts (N, 4, 3) as a function of weights (B, N)."""
    return _of_weights(lambda drawn: _bleu(drawn, effective_order), counts)


def chrf_statistic(counts: NDArray[Any]) -> Statistic:
    """chrF of rows with these counts (N, 6, 3) as a function of weights (B, N)."""
    return _of_weights(_chrf, counts)


def _of_weights(score: Callable[[Floats], Values], counts: NDArray[Any]) -> Statistic:
    flat = counts.reshape(len(counts), math.prod(counts.shape[1:])).astype(np.float64)

    def statistic(weights: Weights) -> Values:
        return score((weights.astype(np.float64) @ flat).reshape(-1, *counts.shape[1:]))

    return statistic


def _metric(statistic: Statistic, n: int, seed: int, resamples: int, confidence: float) -> Metric:
    require_rows(n)
    metric = bootstrap(statistic, n, seed=seed, resamples=resamples, confidence=confidence)
    assert metric is not None, "both are 0 where they have no other value"
    return metric


def _bleu(counts: Floats, effective_order: bool) -> Values:
    """From summed counts (B, 4, 3), (B,)."""
    right, given = counts[:, :, 0], counts[:, :, 1]
    there = given > 0
    # The k-th order without any match counts as 1 / 2**k of one.
    missed = there & (right == 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=1), right)
    logs = np.log(np.divide(smoothed, given, out=np.ones_like(given), where=there))
    orders = np.maximum(there.sum(axis=1), 1) if effective_order else np.full(len(counts), _WORDS)
    words, wanted = given[:, 0], counts[:, 0, 2]
    brevity = np.minimum(0.0, 1 - np.divide(wanted, words, out=np.ones_like(words), where=words > 0))
    defined = right.any(axis=1) & (there.all(axis=1) | effective_order)
    return np.where(defined, 100 * np.exp(brevity + logs.sum(axis=1) / orders), 0.0)


def _chrf(counts: Floats) -> Values:
    """From counts (B, 6, 3), (B,): the F-score of mean precision and mean recall over the orders both sides have."""
    right, given, wanted = np.moveaxis(counts, -1, 0)
    both = (given > 0) & (wanted > 0)
    orders = np.maximum(both.sum(axis=1), 1)
    precision, recall = (
        np.divide(right, whole, out=np.zeros_like(right), where=both).sum(axis=1) / orders for whole in (given, wanted)
    )
    weighed = _BETA2 * precision + recall
    product = (1 + _BETA2) * precision * recall
    return np.divide(100 * product, weighed, out=np.zeros_like(weighed), where=weighed > 0)
