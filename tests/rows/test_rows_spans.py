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
from warmstart.rows import Field, Row, Span, read, read_spans
from warmstart.rows.spans import lifted, unanswered

TEXT = "Ann sings in Paris."
SPANS = [Span(0, 3, "PER"), Span(13, 18, "LOC")]
FIELDS = (Field("text", text=True), Field("tags", ("label", "labels", "entities", "spans", "annotations"), target=True))


def region(start: int, end: int, *labels: str, **value: Any) -> dict[str, Any]:
    return {"type": "labels", "value": {"start": start, "end": end, "labels": list(labels), **value}}


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
