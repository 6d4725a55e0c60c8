"""The answers a row gives to its question, in every shape data sets write them, and where they stand in its context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from warmstart.errors import DataError, Where
from warmstart.rows.targets import is_list, plain_value

# Where an answer's text was found: at its `start`; by its one occurrence, no start being given; at the first of
# several; at the occurrence nearest to a wrong start.
Placing = Literal["as-given", "only", "first", "moved"]


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """`text`: the answer. `start`: the character of the context at which it is said to begin, or None."""

    text: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """An answer's characters in its context, `end` exclusive, without space around them; and how they were found."""

    start: int
    end: int
    placing: Placing


def read_answers(value: object, where: Where | None = None, *, start: object = None) -> tuple[GoldAnswer, ...]:
    """The answers of one row; none for an empty list: the question has no answer in the context.

    Read are a text (beside a `start` of its own), a list of texts, SQuAD's list of `{"text", "answer_start"}`, and one
    object of two lists, as `datasets` writes it. `answer_start` may be missing, None or negative: not known. A blank
    text stands for no answer. Raises DataError "answers-unusable".

        >>> read_answers({"text": ["308"], "answer_start": [34]})
        (GoldAnswer(text='308', start=34),)
    """
    value = plain_value(value)
    if isinstance(value, Mapping):
        texts, starts = plain_value(value.get("text")), plain_value(value.get("answer_start"))
        if is_list(texts):
            starts = [None] * len(texts) if starts is None else starts
            if not is_list(starts) or len(starts) != len(texts):
                raise _unusable(value, where, "text and answer_start are lists of unequal lengths")
            pairs = list(zip(texts, starts, strict=True))
        else:
            pairs = [(texts, starts)]
    elif is_list(value):
        return tuple(answer for item in value for answer in read_answers(item, where))
    else:
        pairs = [(value, start)]
    found = []
    for text, at in pairs:
        if not isinstance(text, str):
            raise _unusable(value, where, f"an answer must be a text, and is of type {type(text).__name__}")
        if text.strip():
            found.append(GoldAnswer(text, _start(at, where)))
    return tuple(found)


def place(answer: GoldAnswer, context: str) -> Placed | None:
    """Where an answer stands in a context; None where its text does not occur there.

    >>> place(GoldAnswer("rain", start=2), "It will rain, and rain.")
    Placed(start=8, end=12, placing='moved')
    """
    text = answer.text.strip()
    lead = answer.text.index(text)
    if answer.start is not None and context.startswith(text, answer.start + lead):
        start = answer.start + lead
        return Placed(start, start + len(text), "as-given")
    first = context.find(text)
    if first < 0:
        return None
    if answer.start is None:
        several = context.find(text, first + 1) >= 0
        return Placed(first, first + len(text), "first" if several else "only")
    wanted = answer.start + lead
    before = context.rfind(text, 0, wanted + len(text))
    after = context.find(text, wanted)
    start = min((at for at in (before, after) if at >= 0), key=lambda at: abs(at - wanted))
    return Placed(start, start + len(text), "moved")


def _start(value: Any, where: Where | None) -> int | None:
    value = plain_value(value)
    if value is None or value != value or value == "":  # pandas writes a missing whole number as NaN
        return None
    if isinstance(value, str) and len(value) < 20 and value.strip().removeprefix("-").isdecimal():
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _unusable(value, where, "answer_start must be a whole number of characters")
    return value if value >= 0 else None


def _unusable(value: object, where: Where | None, what: str) -> DataError:
    return DataError(
        "answers-unusable",
        what,
        where=where,
        value=value,
        fix='write a text, a list of texts, or SQuAD\'s [{"text": "…", "answer_start": 0}]; [] for no answer',
    )
