"""Splitting rows by a hash of their text, so that a row lands in the same part wherever and whenever it is read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

from warmstart.errors import DataError, UsageError
from warmstart.rows.row import Row
from warmstart.rows.targets import plain_value


def bucket(text: str) -> int:
    """One of ten buckets, 0 to 9, by the letters a–z and digits of `text`: 9 is test, 8 validation, the rest train.

    The rule is `sha256(re.sub("[^a-z0-9]", "", text.lower()))[0] % 10`, so case, spacing and punctuation do not move a
    row. It is made for English: a text in another script keeps few letters, or none, and then shares its bucket.

        >>> bucket("A fine film .") == bucket("a FINE film")
        True
    """
    return hashlib.sha256(_letters(text).encode()).digest()[0] % 10


def hold_out(rows: Iterable[Row], fraction: float, *, fields: Sequence[str] = ("text",)) -> tuple[list[Row], list[Row]]:
    """(train, held): about `fraction` of the rows are held, chosen by the hash of the text alone: of the first of
    `fields` that a row has. A list of words counts as their text.

    Equal texts stay together, the order of rows does not matter, and a row that is held stays held when rows are
    added. With at least two different texts neither part is empty. Reads all rows; each part keeps their order.

    Bytes of the hash that `bucket` does not look at are used: rows already chosen by bucket split evenly again.

    Raises `UsageError` "fraction-out-of-range" unless 0 < fraction < 1, and `DataError` "field-missing" for a row
    without a text in any of `fields`.

        >>> train, held = hold_out([Row({"text": str(n)}) for n in range(1000)], 0.1)
        >>> len(train) + len(held)
        1000
    """
    if not 0 < fraction < 1:
        raise UsageError(
            "fraction-out-of-range",
            "the held-out fraction must lie between 0 and 1",
            value=fraction,
            fix="give a fraction such as 0.1",
        )
    rows = list(rows)
    shares = [_share(_text_of(row, fields)) for row in rows]
    if not rows:
        return [], []
    low, high = min(shares), max(shares)
    limit = min(max(fraction, _just_above(low)), high)  # neither part may come out empty; one text only is all train
    train = [row for row, share in zip(rows, shares, strict=True) if share >= limit]
    held = [row for row, share in zip(rows, shares, strict=True) if share < limit]
    return train, held


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def _share(text: str) -> float:
    """A number in [0, 1) by the text's hash."""
    letters = _letters(text)
    # Outside English most letters would be dropped and unlike texts would fall together: then hash what is there.
    if 2 * len(letters) < sum(character.isalnum() for character in text):
        letters = text.casefold()
    digest = hashlib.sha256(letters.encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[1:8], "big") >> 3) / 2**53  # 53 bits: every value is an exact float below 1


def _just_above(share: float) -> float:
    return share + 2**-53


def _text_of(row: Row, fields: Sequence[str]) -> str:
    for field in fields:
        value = plain_value(row.get(field))
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            value = " ".join(value)
        if isinstance(value, str):
            return value
    raise DataError(
        "field-missing",
        f"a row has no text in {' or '.join(map(repr, fields))}, so it cannot be assigned to a part",
        where=row.where,
        value=sorted(row),
        fix=f"give every row a text in {fields[0]!r}, or name another field",
    )
