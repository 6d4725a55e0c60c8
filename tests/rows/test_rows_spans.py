"""Character spans in the shapes of doccano, Label Studio and Prodigy; what nobody has labelled."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmstart.errors import DataError, Where
from warmstart.rows import Row, Span, read, read_spans
from warmstart.rows.spans import lifted, unanswered
from warmstart.tasks.token_classification import TokenClassification

TEXT = "Ann sings in Paris."
SPANS = [Span(0, 3, "PER"), Span(13, 18, "LOC")]
FIELDS = TokenClassification.fields


def region(start: int, end: int, *labels: str, **value: Any) -> dict[str, Any]:
    return {"type": "labels", "value": {"start": start, "end": end, "labels": list(labels), **value}}


def marked(start: int, end: int, label: str, text: str | None) -> dict[str, Any]:
    """A region of Label Studio's HyperText: paths into the page, and the offsets in all that it shows."""
    value = {"start": "/p[1]/text()[1]", "end": "/p[1]/text()[1]", "startOffset": start, "endOffset": end}
    value |= {"globalOffsets": {"start": start, "end": end}, "hypertextlabels": [label]}
    return {"type": "hypertextlabels", "value": value | ({} if text is None else {"text": text})}


LABEL_STUDIO = [{"result": [region(0, 3, "PER"), region(13, 18, "LOC", text="Paris"), {"type": "relation"}]}]
SHAPES: dict[str, dict[str, Any]] = {
    "doccano": {"id": 1, "text": TEXT, "label": [[0, 3, "PER"], [13, 18, "LOC"]]},
    "doccano-relations": {
        "text": TEXT,
        "entities": [
            {"id": 1, "label": "PER", "start_offset": 0, "end_offset": 3},
            {"id": 2, "label": "LOC", "start_offset": 13, "end_offset": 18},
        ],
        "relations": [],
    },
    "prodigy": {
        "text": TEXT,
        "spans": [
            {"start": 0, "end": 3, "token_start": 0, "token_end": 0, "label": "PER"},
            {"start": 13, "end": 18, "token_start": 3, "token_end": 3, "label": "LOC"},
        ],
        "answer": "accept",
        "_task_hash": 1,
    },
    "label-studio": {"id": 7, "data": {"text": TEXT}, "annotations": LABEL_STUDIO},
    "label-studio-hypertext": {
        "data": {"text": TEXT},
        "annotations": [{"result": [marked(0, 3, "PER", "Ann"), marked(13, 18, "LOC", None)]}],
    },
    "label-studio-hypertext-min": {
        "text": TEXT,
        "label": [marked(0, 3, "PER", None)["value"], marked(13, 18, "LOC", "Paris")["value"]],
    },
    "label-studio-min": {
        "text": TEXT,
        "label": [
            {"start": 0, "end": 3, "text": "Ann", "labels": ["PER"]},
            {"start": 13, "end": 18, "text": "Paris", "labels": ["LOC"]},
        ],
    },
    "predictions": {
        "text": TEXT,
        "entities": [
            {"entity_group": "PER", "score": 0.9, "word": "Ann", "start": 0, "end": 3},
            {"entity_group": "LOC", "score": 0.9, "word": "Paris", "start": 13, "end": 18},
        ],
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_every_shape_says_the_same(tmp_path: Path, shape: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps(SHAPES[shape]) + "\n" if suffix == "jsonl" else json.dumps([SHAPES[shape]]))
    [row] = read(path, fields=FIELDS, targets=True)
    assert row["text"] == TEXT
    assert read_spans(row["tags"], row["text"], row.where) == SPANS
    [row] = read(path, fields=FIELDS)  # to predict, what was annotated is left alone
    assert row["text"] == TEXT


def test_utf16_offsets_are_told_by_the_quoted_text() -> None:
    text = "\U0001f600\U0001f600 Ann in Paris"
    as_javascript = [region(12, 17, "LOC", text="Paris")]
    assert text[10:15] == "Paris"
    assert read_spans([{"result": as_javascript}], text, Where()) == [Span(10, 15, "LOC")]
    assert read_spans([{"result": [region(10, 15, "LOC", text="Paris")]}], text, Where()) == [Span(10, 15, "LOC")]
    with pytest.raises(DataError) as caught:
        read_spans([{"result": [region(0, 2, "LOC", text="Paris")]}], text, Where(row=3))
    assert (caught.value.code, caught.value.where.row) == ("span-text-differs", 3)


@given(st.text(), st.data())
def test_utf16_offsets_of_any_text(text: str, data: st.DataObject) -> None:
    text += "x"
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    units = [len(text[:place].encode("utf-16-le", "surrogatepass")) // 2 for place in (start, end)]
    quoted = text[start:end]
    if not quoted.strip() or "\\n" in quoted:
        return  # nothing to tell the two by
    [span] = read_spans([{"start": units[0], "end": units[1], "label": "A", "text": quoted}], text, Where())
    assert text[span.start : span.end] == quoted


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("PER", "spans-unusable"),
        ([[0, 3]], "spans-unusable"),
        ([[0, 3, 7]], "spans-unusable"),
        ([["0", 3, "PER"]], "spans-unusable"),
        ([[True, 3, "PER"]], "spans-unusable"),
        ([{"start": 0, "label": "PER"}], "spans-unusable"),
        ([{"start": 0, "end": 3, "labels": []}], "spans-unusable"),
        (["B-PER"], "spans-unusable"),
        ([[3, 3, "PER"]], "span-out-of-text"),
        ([[5, 3, "PER"]], "span-out-of-text"),
        ([[-1, 3, "PER"]], "span-out-of-text"),
        ([[0, 20, "PER"]], "span-out-of-text"),
        ([{"result": [region(0, 3, "PER")]}, {"result": [region(0, 3, "LOC")]}], "annotations-disagree"),
    ],
)
def test_what_is_no_span(value: Any, code: str) -> None:
    with pytest.raises(DataError) as caught:
        read_spans(value, TEXT, Where(row=2, field="tags"))
    assert (caught.value.code, caught.value.where) == (code, Where(row=2, field="tags"))


@pytest.mark.parametrize(
    ("kind", "place", "text"),
    [
        ("paragraphlabels", {"start": "0", "end": "0", "startOffset": 0, "endOffset": 3}, TEXT),
        ("hypertextlabels", {"start": "/p[1]", "end": "/p[1]", "startOffset": 0, "endOffset": 3}, TEXT),
        ("hypertextlabels", {"globalOffsets": {"start": 0, "end": 3}}, "<b>Ann</b> sings."),  # nothing to check by
        ("timeserieslabels", {"start": 0, "end": 3}, TEXT),
        ("rectanglelabels", {"x": 1, "y": 1, "width": 2, "height": 2}, TEXT),
    ],
)
def test_a_region_without_a_place_in_the_text_is_named_and_not_passed_over(
    kind: str, place: dict[str, Any], text: str
) -> None:
    region_of_a_kind = {"type": kind, "value": {**place, kind: ["PER"]}}
    for value in ([{"result": [region(0, 1, "PER"), region_of_a_kind]}], [region_of_a_kind["value"]]):
        with pytest.raises(DataError, match=kind) as caught:
            read_spans(value, text, Where(row=2))
        assert (caught.value.code, caught.value.where.row) == ("spans-unusable", 2)


def test_hypertext_is_read_where_its_offsets_hold_in_the_markup() -> None:
    markup = "Ann <b>sings</b> in Paris."
    assert read_spans([{"result": [marked(0, 3, "PER", "Ann")]}], markup, Where()) == [Span(0, 3, "PER")]
    with pytest.raises(DataError) as caught:
        read_spans([{"result": [marked(13, 18, "LOC", "Paris")]}], markup, Where())
    assert caught.value.code == "span-text-differs"


def test_choices_and_relations_are_no_spans() -> None:
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    within = {"type": "choices", "value": {"start": 0, "end": 3, "text": "Ann", "choices": ["sure"]}}
    assert read_spans([{"result": [choice, within, {"type": "relation"}]}], TEXT, Where()) == []


def test_a_row_accepted_in_prodigy_without_spans_has_no_entities(tmp_path: Path) -> None:
    words = [{"text": "Ann", "start": 0, "end": 3, "id": 0}, {"text": "sings", "start": 4, "end": 9, "id": 1}]
    bare = {"text": "Ann sings", "tokens": words, "_input_hash": 1, "_task_hash": 2, "answer": "accept"}
    full = bare | {"spans": [{"start": 0, "end": 3, "label": "PER"}]}
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (bare, full, bare | {"spans": None})))
    read_back = list(read(path, fields=FIELDS, targets=True))
    assert [read_spans(row["tags"], row["text"], row.where) for row in read_back] == [[], SPANS[:1], []]
    assert all("spans" not in row for row in read([bare], fields=FIELDS))  # to predict, nothing is added
    with pytest.raises(DataError) as caught:  # without words it might be of another interface: a class, say
        read([{"text": "Ann sings", "_task_hash": 2, "answer": "accept"}], fields=FIELDS, targets=True)
    assert caught.value.code == "column-missing"


def test_of_several_annotations_the_ground_truth_counts() -> None:
    wrong = {"result": [region(0, 3, "LOC")]}
    right = {"result": [region(0, 3, "PER")]}
    assert read_spans([wrong, right | {"ground_truth": True}], TEXT, Where()) == SPANS[:1]
    assert read_spans([wrong | {"was_cancelled": True}, right], TEXT, Where()) == SPANS[:1]
    assert read_spans([right, right], TEXT, Where()) == SPANS[:1]


def test_what_nobody_has_labelled_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prodigy = [SHAPES["prodigy"] | {"answer": answer} for answer in ("accept", "reject", "ignore")]
    studio = [SHAPES["label-studio"] | {"annotations": item} for item in (LABEL_STUDIO, [], [{"result": []}])]
    studio.append(SHAPES["label-studio"] | {"annotations": [LABEL_STUDIO[0] | {"was_cancelled": True}]})
    for name, rows, kept, out in (("p", prodigy, 1, 2), ("s", studio, 2, 2)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with caplog.at_level(logging.WARNING, "warmstart"):
            stream = read(path, fields=FIELDS, targets=True)
            assert len(list(stream)) == kept
        assert stream.left_out == out
        assert f"{out} rows that nobody has labelled were left out" in caplog.text
        assert len(list(read(path, fields=FIELDS))) == len(rows)  # to predict, all of them


def test_rows_of_other_kinds_are_left_alone() -> None:
    plain = Row({"text": "a", "data": {"text": "b"}, "answer": "reject"})
    assert lifted(plain) is plain
    assert not unanswered(plain)
    assert not unanswered({"annotations": ["a", "b"]})
    assert not unanswered({"annotations": []})
