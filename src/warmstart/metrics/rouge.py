"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries, as the package `rouge-score` computes them without a stemmer.

Words are runs of a-z and 0-9 in lower case: of other alphabets nothing is counted, and an accented letter parts a word.
Source: C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries", ACL 2004 workshop.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import UsageError

_WORD = re.compile("[a-z0-9]+")


def rouge_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Each row's `rouge1`, `rouge2` and `rougeL`, arrays (N,) from 0 to 1: F-scores of words, of pairs of words, and of
    the longest common subsequence. `metrics.mean` of one is the corpus's value with its interval.

    Raises UsageError `metric-shape`.

    >>> {name: values.round(3).tolist() for name, values in rouge_scores(["a cat sat"], ["a black cat"]).items()}
    {'rouge1': [0.667], 'rouge2': [0.0], 'rougeL': [0.667]}
    """
    if len(predictions) != len(references):
        raise UsageError(
            "metric-shape",
            "predictions and references must be as many",
            value=f"{len(predictions)} and {len(references)} rows",
            fix="give one predicted and one true text for each row",
        )
    scores = np.zeros((3, len(predictions)))
    for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        given, wanted = _WORD.findall(prediction.lower()), _WORD.findall(reference.lower())
        for n in (1, 2):
            ours, theirs = _ngrams(given, n), _ngrams(wanted, n)
            scores[n - 1, row] = _f1((ours & theirs).total(), ours.total(), theirs.total())
        scores[2, row] = _f1(_longest_common(given, wanted), len(given), len(wanted))
    return dict(zip(("rouge1", "rouge2", "rougeL"), scores, strict=True))


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _f1(shared: int, given: int, wanted: int) -> float:
    return 2 * shared / (given + wanted) if shared else 0.0


def _longest_common(left: list[str], right: list[str]) -> int:
    """The length of the longest common subsequence, one bit a word of `left`.

    Source: H. Hyyrö, "Bit-parallel LCS-length computation revisited", AWOCA 2004.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(left)) - 1
    open_places = every
    for word in right:
        hits = open_places & places.get(word, 0)
        open_places = ((open_places + hits) | (open_places - hits)) & every
    return len(left) - open_places.bit_count()
