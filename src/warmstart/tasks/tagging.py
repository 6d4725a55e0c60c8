"""Tags and spans: what a label table means, which spans a run of tags makes, which tags a span is written in.

One row of tags can be written as BIO (IOB2), IOB1, BILOU, BIOES or IO. All of them say spans, so tags are read into
spans and spans are written in the tags of the model, whatever either was written in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from warmstart.errors import DataError, Where, did_you_mean
from warmstart.rows import Labels

OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIMLEUS])-(.+)", re.DOTALL)
_KINDS = {"B": "B", "I": "I", "M": "I", "L": "L", "E": "L", "U": "U", "S": "U"}

Tag = tuple[str, str]  # kind: B begins, I goes on, L ends, U is all of a span, O is none; and the type
Run = tuple[str, int, int]  # type, first position, position after the last


@dataclass(frozen=True)
class Tagging:
    """The tags of a model, in the order of its logits."""

    labels: tuple[str, ...]

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        """What each label means."""
        prefixed = is_prefixed(self.labels)
        return tuple(_parse(label, prefixed=prefixed) for label in self.labels)

    @cached_property
    def types(self) -> Labels:
        """The types of entities, in the order in which the labels name them."""
        return Labels(tuple(dict.fromkeys(name for kind, name in self.tags if kind != "O")))

    @cached_property
    def _ids(self) -> dict[Tag, int]:
        return {tag: i for i, tag in reversed(list(enumerate(self.tags)))}

    @property
    def outside(self) -> int | None:
        """The label of what belongs to no span; None in a table without one, as of parts of speech."""
        return self._ids.get(("O", ""))

    def read(self, value: object, where: Where) -> Tag:
        """What one tag of a row, or its id, means to this model. The type is spelled as the model spells it.

        Raises DataError "tag-unusable", "tags-are-ids", "label-unknown".
        """
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.tags):
            return self.tags[value]
        tag = tag_text(value, where)
        if tag == OUTSIDE:
            return "O", ""
        match = _PREFIXED.fullmatch(tag)
        if match and (is_prefixed(self.labels) or (tag not in self.types.names and match[2] in self.types.names)):
            return _KINDS[match[1]], self.type_of(match[2], where)
        return "I", self.type_of(tag, where)

    def type_of(self, name: object, where: Where) -> str:
        """A type as the model spells it. Raises DataError "label-unknown"."""
        try:
            return self.types.names[self.types.index(name, where)]
        except DataError as error:
            if error.code != "label-unknown":
                raise
            raise DataError(
                "label-unknown",
                f"this type of entity is none of the {len(self.types)} that the model knows",
                where=where,
                value=name,
                fix=f"{did_you_mean(str(name), self.types.names)} Correct the row, or train with this type",
            ) from None

    def knows(self, types: Iterable[str]) -> bool:
        """Whether all of these are types of the model."""
        try:
            return all(self.type_of(name, Where()) for name in types)
        except DataError:
            return False

    def write(self, name: str, length: int) -> list[int]:
        """The label ids of a span of a type over `length` positions. A table that lacks a tag has the next best."""
        if length == 1:
            return [self._best(name, "UBIL")]
        return [self._best(name, "BIUL"), *[self._best(name, "IBLU")] * (length - 2), self._best(name, "LIBU")]

    def _best(self, name: str, kinds: str) -> int:
        return next(self._ids[kind, name] for kind in kinds if (kind, name) in self._ids)


def runs(tags: Sequence[Tag]) -> list[Run]:
    """The spans that a row of tags makes, as seqeval's default mode reads them: a span begins at B and U, and at any
    tag after O, after L or U, or after another type.

    >>> runs([("B", "PER"), ("I", "PER"), ("B", "PER"), ("O", ""), ("I", "LOC")])
    [('PER', 0, 2), ('PER', 2, 3), ('LOC', 4, 5)]
    """
    found: list[Run] = []
    before: Tag = ("O", "")
    for i, (kind, name) in enumerate(tags):
        if kind != "O":
            if begins((kind, name), before):
                found.append((name, i, i + 1))
            else:
                found[-1] = (name, found[-1][1], i + 1)
        before = (kind, name)
    return found


def begins(tag: Tag, before: Tag) -> bool:
    """Whether a tag that is not O begins a span, by the tag before it."""
    return tag[0] in "BU" or before[0] in "OLU" or before[1] != tag[1]


def is_prefixed(labels: Iterable[str]) -> bool:
    """Whether these tags carry prefixes: all but O have one. A type may have a hyphen of its own, as E-mail."""
    named = [label for label in labels if label != OUTSIDE]
    return bool(named) and all(_PREFIXED.fullmatch(label) for label in named)


def scheme_labels(tags: Iterable[str], types: Iterable[str]) -> tuple[str, ...]:
    """The label table to train for these types, in the scheme of the tags that a data set has: with any of L, E, U, S
    BILOU or BIOES, with any other prefix BIO, without a prefix IO. No tags at all (spans of characters) give BIO."""
    seen = set(tags)
    outside = (OUTSIDE,) if not seen or OUTSIDE in seen else ()
    if seen - {OUTSIDE} and not is_prefixed(seen):
        return (*outside, *types)
    prefixes = {tag[0] for tag in seen if tag != OUTSIDE}
    four = "BILU" if prefixes & {"L", "U"} else "BIES" if prefixes & {"E", "S"} else "BI"
    return (OUTSIDE, *(f"{prefix}-{name}" for name in types for prefix in four))


def type_of_tag(tag: str, *, prefixed: bool) -> str:
    """The type in a tag; "" in O."""
    return _parse(tag, prefixed=prefixed)[1]


def tag_text(value: object, where: Where) -> str:
    """A tag of a row as text. Raises DataError "tag-unusable"; "tags-are-ids" for a number that names nothing."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise DataError(
            "tags-are-ids",
            "the tags are numbers, and nothing says what they stand for",
            where=where,
            value=value,
            fix="write their names, such as B-person; a datasets.Dataset with ClassLabel features carries them along",
        )
    if isinstance(value, str) and value.strip():
        return value.strip()
    raise DataError(
        "tag-unusable",
        "a tag must be a name",
        where=where,
        value=value,
        fix='write a tag for each token, such as ["B-person", "O"]; of a text, spans as [start, end, label]',
    )


def _parse(label: str, *, prefixed: bool) -> Tag:
    if label == OUTSIDE:
        return "O", ""
    match = _PREFIXED.fullmatch(label) if prefixed else None
    return (_KINDS[match[1]], match[2]) if match else ("I", label)
