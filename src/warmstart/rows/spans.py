"""Character spans as annotation tools write them: doccano, Label Studio, Prodigy, and predictions of our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from warmstart.errors import DataError, Where
from warmstart.rows.row import Row
from warmstart.rows.targets import plain_value

_STARTS, _ENDS = ("start", "start_offset"), ("end", "end_offset")
_LABELS = ("label", "labels", "entity_group", "type", "entity")
_HYPERTEXT = "hypertextlabels"  # Label Studio's regions of its HyperText


class Span(NamedTuple):
    """Characters `start` to `end` (exclusive) of a row's text, with a label."""

    start: int
    end: int
    label: str


def lifted(row: Row) -> Row:
    """A task of a Label Studio export with the fields of its `data` beside the others; any other row as it is."""
    data = row.get("data")
    if not (isinstance(data, Mapping) and isinstance(row.get("annotations"), list)):
        return row
    return Row({**data, **{name: value for name, value in row.items() if name != "data"}}, row.where)


def unanswered(row: Mapping[str, Any]) -> bool:
    """Whether an annotation tool says that nobody has labelled this row: in Prodigy rejected or ignored, in Label
    Studio without an annotation that was not cancelled. That is not a row without spans."""
    if "_task_hash" in row:
        return row.get("answer", "accept") != "accept"
    annotations = row.get("annotations")
    if not isinstance(annotations, list) or not all(_is_annotation(item) for item in annotations):
        return False
    return not _submitted(annotations) and ("data" in row or bool(annotations))


def completed(row: Row) -> Row:
    """A row accepted in Prodigy, of words, without spans: someone looked and found none, as Prodigy's own
    training reads it. Any other row as it is."""
    if "_task_hash" in row and row.get("spans") is None and isinstance(row.get("tokens"), list):
        return Row({**row, "spans": []}, row.where)
    return row


def read_spans(value: object, text: str, where: Where) -> list[Span]:
    """The spans of a row, in the order given.

    `value` is a list of [start, end, label], of objects (`start` or `start_offset`; `end` or `end_offset`; `label`,
    `labels`, `type` or `entity_group`), or the `annotations` of a Label Studio task. Offsets count characters; where
    an object carries its own `text` and that shows they count UTF-16 units, as JavaScript does, they are converted.
    Label Studio's regions of hypertext are read by their `globalOffsets`, which count what a browser shows: where the
    text is markup the two differ, and that is an error.

    Raises `DataError` "spans-unusable" (also for labelled regions of other kinds, such as `paragraphlabels`),
    "span-out-of-text" (an end beyond the text, a start not before its end), "span-text-differs", and
    "annotations-disagree" where a task has several annotations that are not the same.

        >>> read_spans([[0, 5, "place"]], "Paris in May", Where())
        [Span(start=0, end=5, label='place')]
    """
    items = plain_value(value)
    if not isinstance(items, list | tuple):
        raise _unusable(value, where)
    if items and all(_is_annotation(item) for item in items):
        return _annotated(items, text, where)
    return [span for item in items for span in _spans(item, text, where)]


def _is_annotation(item: object) -> bool:
    return isinstance(item, Mapping) and isinstance(item.get("result"), list)


def _submitted(annotations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [annotation for annotation in annotations if not annotation.get("was_cancelled")]


def _annotated(annotations: Sequence[Mapping[str, Any]], text: str, where: Where) -> list[Span]:
    """Of several people's annotations the ground truth; without one they have to agree."""
    there = _submitted(annotations)
    there = [annotation for annotation in there if annotation.get("ground_truth")] or there
    read = [
        [span for region in annotation["result"] if _is_region(region) for span in _spans(region["value"], text, where)]
        for annotation in there
    ]
    if any(set(spans) != set(read[0]) for spans in read[1:]):
        raise DataError(
            "annotations-disagree",
            f"the row has {len(read)} annotations with different spans",
            where=where,
            value=[len(spans) for spans in read],
            fix="keep one of them, or mark one as the ground truth",
        )
    return read[0] if read else []


def _is_region(region: object) -> bool:
    """Whether one item of a result is labelled (labels, hypertextlabels, paragraphlabels, rectanglelabels, …); others
    are choices for the whole text, relations, comments."""
    value = region.get("value") if isinstance(region, Mapping) else None
    return isinstance(value, Mapping) and any(str(name).endswith("labels") for name in value)


def _plain_region(item: Mapping[str, Any], text: str, where: Where) -> Mapping[str, Any]:
    """A region of hypertext as one of plain text, where its offsets are exact. Raises DataError "spans-unusable"."""
    kinds = [name for name in map(str, item) if name.endswith("labels")]
    kind = next((name for name in kinds if name not in ("labels", _HYPERTEXT)), None)
    if kind is not None:
        raise _unusable(item, where, f"a region of {kind} has no place in a text that is one string")
    overall = item.get("globalOffsets")
    if _HYPERTEXT not in item and overall is None:
        return item
    if not isinstance(overall, Mapping):
        raise _unusable(item, where, f"a region of {_HYPERTEXT} without globalOffsets has no place in characters")
    if not isinstance(item.get("text"), str) and ("<" in text or "&" in text):
        raise _unusable(item, where, f"a region of {_HYPERTEXT} without its text has no sure place in markup")
    named = {"start": overall.get("start"), "end": overall.get("end"), "labels": item.get(_HYPERTEXT)}
    return {**item, **{name: value for name, value in named.items() if value is not None}}


def _spans(item: object, text: str, where: Where) -> Iterator[Span]:
    item = plain_value(item)
    quoted: object = None
    if isinstance(item, Mapping):
        item = _plain_region(item, text, where)
        start, end, label = (_first(item, names) for names in (_STARTS, _ENDS, _LABELS))
        quoted = item.get("text", item.get("word"))
    elif isinstance(item, list | tuple) and len(item) == 3:
        start, end, label = item
    else:
        raise _unusable(item, where)
    labels = label if isinstance(label, list | tuple) else (label,)
    if not (_is_offset(start) and _is_offset(end) and labels and all(isinstance(each, str) for each in labels)):
        raise _unusable(item, where)
    if isinstance(quoted, str):
        start, end = _as_quoted(start, end, quoted, text, where)
    if not 0 <= start < end <= len(text):
        raise DataError(
            "span-out-of-text",
            f"a span from {start} to {end} does not lie in its text of {len(text)} characters",
            where=where,
            value=item,
            fix="correct its offsets: they count characters from 0, and the end is exclusive",
        )
    for each in labels:
        yield Span(start, end, each)


def _first(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((item[name] for name in names if item.get(name) is not None), None)


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _as_quoted(start: int, end: int, quoted: str, text: str, where: Where) -> tuple[int, int]:
    """The offsets at which the quoted text stands, by characters or by UTF-16 units."""
    start, end = max(start, 0), max(end, 0)
    places = [(start, end)] if end <= len(text) else []
    if not text.isascii():
        units = text.encode("utf-16-le", "surrogatepass")
        before, inside = (
            part.decode("utf-16-le", "replace") for part in (units[: 2 * start], units[2 * start : 2 * end])
        )
        places.append((len(before), len(before) + len(inside)))
    for alike in (str.__eq__, _alike):
        for first, last in places:
            if alike(text[first:last], quoted):
                return first, last
    raise DataError(
        "span-text-differs",
        "a span quotes a text that does not stand at its offsets",
        where=where,
        value={"start": start, "end": end, "quotes": quoted, "there": text[start:end]},
        fix="correct the offsets, or export again from the tool that the text has been loaded into",
    )


def _alike(one: str, other: str) -> bool:
    """Equal but for white space, which tools write in their own way (a line end as \\n in two characters)."""
    return "".join(one.split()) == "".join(other.replace("\\n", " ").split())


def _unusable(value: object, where: Where, what: str = "this is no span of the text") -> DataError:
    return DataError(
        "spans-unusable",
        what,
        where=where,
        value=value,
        fix='write [start, end, label], or {"start": 0, "end": 5, "label": "place"}; of tokens, a tag for each of them',
    )
