"""A row of token classification: its text, the words it gives, and the spans that are true of it."""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.errors import DataError, Where
from warmstart.features import Array
from warmstart.rows import Labels, Row, Span, read_spans
from warmstart.rows.targets import plain_value
from warmstart.tasks.contract import text_of
from warmstart.tasks.tagging import OUTSIDE, Run, Tag, Tagging, begins, is_prefixed, runs, tag_text, type_of_tag

# What is repaired in gold data, and counted: a fault a name.
INSIDE = "inside-without-begin"  # I- or L- where no entity was begun: IOB1, or a slip; an entity begins there
OVERLAP = "span-overlap"  # the longer of two spans that overlap, or share a word, is kept: a token has one tag
OFF_EDGE = "span-off-word-edge"  # a span that cuts a word, or takes in space, is moved to the words' edges


@dataclass(frozen=True)
class Words:
    """The text of a row, and the words it was given in: (start, end) of each in the text; None if it gave none."""

    text: str
    words: tuple[tuple[int, int], ...] | None


def read_words(row: Row) -> Words:
    """The text and words of a row: of `text`, of `tokens` joined by spaces, or of both, where the tokens are found in
    the text one after the other. Tokens are strings, or objects with `text`, `start` and `end` as Prodigy writes them.

    Raises DataError "field-missing", "field-not-text", "field-not-tokens", "tokens-not-in-text".
    """
    tokens = plain_value(row.get("tokens"))
    if tokens is None:
        text = text_of(row, "text")
        assert text is not None
        return Words(text, None)
    where = dataclasses.replace(row.where, field="tokens")
    items = list(tokens) if isinstance(tokens, list | tuple) else None
    given = text_of(row, "text", optional=True)
    if items is not None and given is not None and items and all(_is_placed(item, given) for item in items):
        return Words(given, tuple((item["start"], item["end"]) for item in items))
    if items is None or not all(isinstance(item, str) for item in items):
        raise DataError(
            "field-not-tokens",
            "'tokens' must be a list of strings",
            where=where,
            value=tokens,
            fix='write the words of the text, such as ["Paris", "in", "May"]',
        )
    return _joined(items) if given is None else Words(given, _found(items, given, where))


def _is_placed(item: object, text: str) -> bool:
    if not isinstance(item, Mapping):
        return False
    start, end = item.get("start"), item.get("end")
    return isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(text)


def _joined(tokens: Sequence[str]) -> Words:
    words, at = [], 0
    for token in tokens:
        words.append((at, at + len(token)))
        at += len(token) + 1
    return Words(" ".join(tokens), tuple(words))


def _found(tokens: Sequence[str], text: str, where: Where) -> tuple[tuple[int, int], ...]:
    words, at = [], 0
    for i, token in enumerate(tokens):
        start = text.find(token, at)
        if start < 0:
            raise DataError(
                "tokens-not-in-text",
                f"token {i} does not stand in the row's text after the token before it",
                where=where,
                value=token,
                fix="leave the text out, and the tokens are joined by spaces; or correct one of the two",
            )
        at = start + len(token)
        words.append((start, at))
    return tuple(words)


def tags_of(row: Row, given: Words) -> list[Any] | None:
    """The row's `tags` where they are one for each of its words; None where they are spans of its text.

    Raises DataError "tags-length", and "field-missing" for a row without any.
    """
    value = plain_value(row.get("tags"))
    where = dataclasses.replace(row.where, field="tags")
    if value is None:
        raise DataError(
            "field-missing",
            "the row has no 'tags'",
            where=where,
            value=sorted(row),
            fix="give every row a tag for each token or a list of spans, which may be empty",
        )
    items = list(value) if isinstance(value, list | tuple) else None
    as_objects = given.words is not None and any(isinstance(item, Mapping) for item in row["tokens"])
    if given.words is None or items is None or as_objects or any(isinstance(item, list | dict) for item in items):
        return None
    if len(items) != len(given.words):
        raise DataError(
            "tags-length",
            f"the row has {len(given.words)} tokens and {len(items)} tags",
            where=where,
            value=items[:20],
            fix="give every token exactly one tag, O for what belongs to no entity",
        )
    return items


def learn_types(rows: Sequence[Row], labels: tuple[str, ...]) -> tuple[set[str], tuple[str, ...]]:
    """The tags that occur in rows (none in rows of character spans), and the types of entities they speak of, sorted.

    A tag may be an id only of `labels`. Raises DataError "no-entities", "tags-mixed", "tags-are-ids", "tag-unusable".
    """
    tags: list[tuple[str, Where]] = []
    named: list[tuple[str, Where]] = []
    for row in rows:
        given = read_words(row)
        where = dataclasses.replace(row.where, field="tags")
        values = tags_of(row, given)
        if values is None:
            named += [(span.label, where) for span in read_spans(row["tags"], given.text, where)]
        else:
            tags += [(labels[v] if _is_id(v, labels) else tag_text(v, where), where) for v in values]
    seen = {tag for tag, _ in tags}
    prefixed = is_prefixed(seen)
    if not prefixed:
        _check_not_mixed(seen, tags)
    named += [(type_of_tag(tag, prefixed=prefixed), where) for tag, where in tags if tag != OUTSIDE]
    if not named:
        raise DataError(
            "no-entities",
            f"none of the {len(rows)} rows has an entity",
            where=dataclasses.replace(rows[0].where, field="tags") if rows else None,
            fix="check the column of tags or spans, and what the annotation tool exported",
        )
    return seen, Labels.learn((name for name, _ in named), [where for _, where in named]).names


def _is_id(value: object, labels: Sequence[str]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(labels)


def _check_not_mixed(seen: set[str], tags: Sequence[tuple[str, Where]]) -> None:
    """Tags of which some begin with B- or I- and some have no prefix say two things."""
    if not any(tag.startswith(("B-", "I-")) for tag in seen):
        return
    tag, where = next((tag, where) for tag, where in tags if tag != OUTSIDE and not is_prefixed([tag]))
    raise DataError(
        "tags-mixed",
        "some tags have a prefix such as B-, and this one has none",
        where=where,
        value=tag,
        fix="write all entities in one scheme: B- and I- before every type, or before none",
    )


def read_gold(row: Row, given: Words, tagging: Tagging, repairs: Counter[str]) -> list[Span]:
    """The true spans of a row in characters, types as the model spells them, by position and without overlap; where the
    row gives words, at their edges.

    What had to be repaired is counted in `repairs`. Raises DataError of `tags_of`, `Tagging.read`, `rows.read_spans`.
    """
    where = dataclasses.replace(row.where, field="tags")
    values = tags_of(row, given)
    if values is None:
        spans = [
            Span(start, end, tagging.type_of(label, where))
            for start, end, label in read_spans(row["tags"], given.text, where)
        ]
        gold = _apart(sorted(set(spans)), repairs)
        if given.words is None:
            return gold
        ranges = np.array(given.words, dtype=np.int64).reshape(-1, 2)
        return on_words(gold, ranges[:, 0], ranges[:, 1], repairs)
    assert given.words is not None
    tags = [tagging.read(value, where) for value in values]
    repairs[INSIDE] += _without_begin(values, tags)
    return [Span(given.words[first][0], given.words[last - 1][1], name) for name, first, last in runs(tags)]


def _without_begin(values: Sequence[Any], tags: Sequence[Tag]) -> int:
    """How many entities begin with a tag that says inside or last. A tag without a prefix says neither."""
    before: Tag = ("O", "")
    count = 0
    for value, tag in zip(values, tags, strict=True):
        bare = isinstance(value, str) and value.strip() == tag[1]
        count += tag[0] in "IL" and not bare and begins(tag, before)
        before = tag
    return count


def on_words(gold: Sequence[Span], starts: Array, ends: Array, repairs: Counter[str]) -> list[Span]:
    """The true spans, by position, moved to the edges of the words (U,) that they overlap, and of those that then share
    a word the longest, or the first. A span that overlaps no word is left as it is. Both are counted in `repairs`."""
    low = np.searchsorted(ends, [span.start for span in gold], side="right").tolist()
    high = np.searchsorted(starts, [span.end for span in gold], side="left").tolist()
    moved = [
        Span(int(starts[first]), int(ends[last - 1]), span.label) if first < last else span
        for span, first, last in zip(gold, low, high, strict=True)
    ]
    repairs[OFF_EDGE] += sum(a != b for a, b in zip(gold, moved, strict=True))
    return _apart(moved, repairs)


def _apart(spans: Sequence[Span], repairs: Counter[str]) -> list[Span]:
    """The spans without those that overlap a longer one, or an equally long one before it, by position."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: span.start - span.end):
        at = bisect.bisect(kept, span)
        if (at == 0 or kept[at - 1].end <= span.start) and (at == len(kept) or span.end <= kept[at].start):
            kept.insert(at, span)
    repairs[OVERLAP] += len(spans) - len(kept)
    return kept


def word_runs(spans: Sequence[Span], words: Sequence[tuple[int, int]]) -> list[Run]:
    """Spans of characters as runs of the words they overlap; a word belongs to the first span that reaches it."""
    found: list[Run] = []
    at = 0
    for start, end, name in spans:
        while at < len(words) and words[at][1] <= start:
            at += 1
        first = at
        while at < len(words) and words[at][0] < end:
            at += 1
        if at > first:
            found.append((name, first, at))
    return found
