"""Exact match and F1 of answers, as the evaluation script of SQuAD 2.0 defines them.

On data whose every answer holds a word that is neither punctuation nor an article it equals the script of SQuAD 1.1.
Source: P. Rajpurkar, R. Jia and P. Liang, "Know what you don't know: unanswerable questions for SQuAD" (2018), and the
evaluation script published with it.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warmstart.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def normalize_answer(text: str) -> str:
    """An answer as it is compared: lower case, without ASCII punctuation and English articles, single spaces.

    >>> normalize_answer(" The  Panthers' defense.")
    'panthers defense'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(
    predictions: Sequence[str], golds: Sequence[Sequence[str]]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Each prediction's exact match and F1, shapes (N,), against the best of its row's true answers.

    "" is the prediction, and an empty sequence the truth, of a question without an answer. F1 is that of the words
    both have in common. Raises UsageError "metric-shape".

    >>> answer_scores(["the rain in Spain", ""], [["rain", "Spain's rain"], []])
    (array([False,  True]), array([0.5, 1. ]))
    """
    if len(predictions) != len(golds):
        raise UsageError(
            "metric-shape",
            "predictions and true answers must be as many",
            value=f"{len(predictions)} and {len(golds)} rows",
            fix="give one prediction and one list of true answers for each row",
        )
    exact, f1 = np.zeros(len(predictions), np.bool_), np.zeros(len(predictions))
    for i, (prediction, answers) in enumerate(zip(predictions, golds, strict=True)):
        given = normalize_answer(prediction)
        # As in the script: a true answer of nothing but articles and punctuation does not count.
        wanted = [text for text in map(normalize_answer, answers) if text] or [""]
        exact[i] = given in wanted
        f1[i] = max(_f1(given.split(), text.split()) for text in wanted)
    return exact, f1


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((Counter(given) & Counter(wanted)).values())
    # Twice what both share over all words: the same as 2PR / (P + R).
    return 2 * shared / (len(given) + len(wanted))
