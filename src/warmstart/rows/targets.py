"""Targets as they stand in rows: the one spelling of a label, the number of a regression, and which of them it is."""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Collection, Iterable
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Literal, TypeGuard

from warmstart.errors import DataError, Where

WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")


def spelling(value: object, where: Where | None = None) -> str:
    """The one spelling in which a label is compared.

    Raises `DataError` "label-missing" for None, NaN and blank strings, "label-unusable" for what is no label.
    """
    value = plain_value(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value.strip())
        if text:
            # Digits without limit would be a way to make int() slow; no class has a hundred.
            return str(int(text.partition(".")[0])) if len(text) < 100 and WHOLE.fullmatch(text) else text
    elif isinstance(value, Integral):
        return str(int(value))
    elif isinstance(value, Real | Decimal) and value == value:
        figure = float(value)
        if math.isinf(figure):
            raise _unusable(value, where)
        return str(int(figure)) if figure.is_integer() and abs(figure) < 2**53 else str(value)
    elif value is not None and not isinstance(value, Real | Decimal):
        raise _unusable(value, where)
    raise DataError(
        "label-missing",
        "the row has no label",
        where=where,
        value=repr(value),
        fix="label the row, remove it, or skip bad rows: on_error='skip'",
    )


def number(value: object, where: Where | None = None) -> float:
    """A regression target: a finite number, or a string that writes one.

    Raises `DataError` "target-not-number".

        >>> number(" 3.5 ")
        3.5
    """
    value = plain_value(value)
    figure = _figure(value)
    if figure is None:
        fix = (
            "write a decimal point, not a comma" if isinstance(value, str) and "," in value else "write a finite number"
        )
        raise DataError("target-not-number", "the target must be a number", where=where, value=value, fix=fix)
    return figure


def infer_problem(values: Iterable[object]) -> Literal["single", "multi", "regression"]:
    """What kind of target these are: lists are multi-label; numbers, or strings that write them, of which any has a
    fraction are regression; everything else is single-label. Missing values do not count.

    Raises `DataError` "label-mixed" where some rows have a list and some do not.

        >>> infer_problem(["3.0", "4.5"])
        'regression'
    """
    lists = others = fractions = words = 0
    for value in map(plain_value, values):
        if is_list(value):
            lists += 1
        elif is_missing(value):
            continue
        else:
            others += 1
            figure = _figure(value)
            words += figure is None
            fractions += figure is not None and not figure.is_integer()
    if lists and others:
        raise DataError(
            "label-mixed",
            "some rows have a list of labels and some a single one",
            value=f"{lists} lists, {others} single",
            fix="write a list in every row, or in none",
        )
    if lists:
        return "multi"
    return "regression" if fractions and not words else "single"


def plain_value(value: object) -> Any:
    """A numpy scalar or array as Python's own; anything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return value
    if isinstance(value, numpy.generic):
        return value.item()
    return value.tolist() if isinstance(value, numpy.ndarray) else value


def is_missing(value: object) -> bool:
    """Whether this stands for no value: None, NaN, NaT, NA, an empty string; never a list or an array."""
    value = plain_value(value)
    if value is None or isinstance(value, str):
        return not value
    try:
        return bool(value != value)
    except TypeError:  # only pandas.NA does not even know whether it differs from itself
        return True


def _figure(value: object) -> float | None:
    """A finite number, written or typed; None for anything else, a bool too."""
    if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
        return None
    if isinstance(value, str) and "_" in value:  # 1_000 is Python, not data
        return None
    try:
        figure = float(value)
    except (ValueError, OverflowError):
        return None
    return figure if figure - figure == 0 else None


def is_list(value: object) -> TypeGuard[Collection[Any]]:
    """Whether a value is a collection of labels."""
    return isinstance(value, list | tuple | set | frozenset)


def is_bit(value: object) -> bool:
    """Whether a value is 0 or 1, of whatever numeric type."""
    return isinstance(value, int | float) and value in (0, 1)


def _unusable(value: object, where: Where | None) -> DataError:
    return DataError(
        "label-unusable",
        f"a value of type {type(value).__name__} is no label",
        where=where,
        value=value,
        fix="write a name, a whole number, or for several labels a list of them",
    )
