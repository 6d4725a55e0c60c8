"""SQuAD's nested JSON as rows; answers in every shape data sets write them, and where they stand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmstart.errors import DataError, Where
from warmstart.rows import GoldAnswer, Row, place, read, read_answers
from warmstart.tasks.question_answering import QuestionAnswering

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FIELDS = QuestionAnswering.fields
ARTICLES: list[Any] = [
    {
        "title": "Rain",
        "paragraphs": [
            {
                "context": "It rains in May.",
                "qas": [
                    {"id": "a", "question": "When?", "answers": [{"text": "May", "answer_start": 12}]},
                    {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
                ],
            },
            {"context": "It snows.", "qas": [{"id": "c", "question": "What?", "answers": [{"text": "snows"}]}]},
        ],
    },
    {"title": "Sun", "paragraphs": []},
]


def file_of(tmp_path: Path, articles: Any, name: str = "squad.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"version": "v2.0", "data": articles}), encoding="utf-8")
    return path


# --- SQuAD JSON -------------------------------------------------------------------------------------------------------


def test_squad_json_is_one_row_a_question(tmp_path: Path) -> None:
    path = file_of(tmp_path, ARTICLES)
    stream = read(path, fields=FIELDS, targets=True)
    rows = list(stream)
    assert [(row["id"], row["title"], row["context"], row["question"]) for row in rows] == [
        ("a", "Rain", "It rains in May.", "When?"),
        ("b", "Rain", "It rains in May.", "Why?"),
        ("c", "Rain", "It snows.", "What?"),
    ]
    assert [row["answers"] for row in rows] == [[{"text": "May", "answer_start": 12}], [], [{"text": "snows"}]]
    assert rows[1]["is_impossible"] is True
    assert rows[0]["context"] is rows[1]["context"]  # one string, however many questions
    assert [row.where for row in rows] == [Where(source=str(path), row=i) for i in range(3)]
    assert any("SQuAD" in sentence for sentence in stream.guessed)


def test_squad_json_may_be_gzipped(tmp_path: Path) -> None:
    plain = file_of(tmp_path, ARTICLES)
    zipped = tmp_path / "squad.json.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read(zipped, fields=FIELDS, targets=True)) == list(read(plain, fields=FIELDS, targets=True))


@pytest.mark.parametrize(
    ("broken", "place_of_it", "row"),
    [
        ([*ARTICLES, "an article"], "data[2]", 3),
        ([*ARTICLES, {"paragraphs": "none"}], "data[2]", 3),
        ([*ARTICLES, {"paragraphs": [{"qas": []}]}], "data[2].paragraphs[0]", 3),
        ([*ARTICLES, {"paragraphs": [{"context": "x", "qas": [3]}]}], "data[2].paragraphs[0].qas[0]", 3),
    ],
)
def test_what_is_not_squad_in_it_is_named(tmp_path: Path, broken: Any, place_of_it: str, row: int) -> None:
    path = file_of(tmp_path, broken)
    with pytest.raises(DataError) as caught:
        list(read(path, fields=FIELDS, targets=True))
    assert caught.value.code == "squad-shape"
    assert caught.value.where == Where(source=str(path), field=place_of_it, row=row)
    stream = read(path, fields=FIELDS, targets=True, on_error="skip")
    assert (len(list(stream)), stream.skipped) == (3, 1)


def test_other_objects_with_paragraphs_are_left_as_they_are(tmp_path: Path) -> None:
    path = file_of(tmp_path, [{"question": "a", "context": "b", "paragraphs": ["b", "c"]}])
    assert list(read(path, fields=FIELDS)) == [{"question": "a", "context": "b", "paragraphs": ["b", "c"]}]


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_the_real_file() -> None:
    path = DATA / "answers" / "xquad.en.json"
    rows = list(read(path, fields=FIELDS, targets=True))
    document = json.loads(path.read_text(encoding="utf-8"))
    expected = [
        (qa["id"], qa["question"], paragraph["context"], [(a["text"], a["answer_start"]) for a in qa["answers"]])
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    found = []
    for row in rows:
        answers = read_answers(row["answers"])
        found.append((row["id"], row["question"], row["context"], [(a.text, a.start) for a in answers]))
        [answer] = answers
        placed = place(answer, row["context"])
        assert placed is not None
        assert placed.placing == "as-given"
        assert row["context"][placed.start : placed.end] == answer.text.strip()
    assert found == expected
    assert len(rows) == 1190
    assert len({row["context"] for row in rows}) == 240


# --- the shapes of answers --------------------------------------------------------------------------------------------

MAY = GoldAnswer("May", 12)


@pytest.mark.parametrize(
    ("value", "start", "answers"),
    [
        ([{"text": "May", "answer_start": 12}], None, (MAY,)),
        ({"text": ["May", "in May"], "answer_start": [12, 9]}, None, (MAY, GoldAnswer("in May", 9))),
        ({"text": np.array(["May"]), "answer_start": np.array([12])}, None, (MAY,)),
        ({"text": "May", "answer_start": 12}, None, (MAY,)),
        ({"text": "May"}, None, (GoldAnswer("May"),)),
        ("May", None, (GoldAnswer("May"),)),
        ("May", 12, (MAY,)),
        ("May", "12", (MAY,)),  # as CSV has it
        ("May", 12.0, (MAY,)),  # as pandas has a column with gaps
        ("May", float("nan"), (GoldAnswer("May"),)),
        ("May", "", (GoldAnswer("May"),)),
        ("May", -1, (GoldAnswer("May"),)),
        (["May", "in May"], None, (GoldAnswer("May"), GoldAnswer("in May"))),
        ([], None, ()),
        ({"text": [], "answer_start": []}, None, ()),
        ({"text": "", "answer_start": -1}, None, ()),
        (["  "], None, ()),
    ],
)
def test_answers_are_read_in_every_shape(value: object, start: object, answers: tuple[GoldAnswer, ...]) -> None:
    assert read_answers(value, start=start) == answers


@pytest.mark.parametrize(
    ("value", "start"),
    [
        (None, None),
        (3, None),
        (b"May", None),
        ({"a": 1}, None),
        ([None], None),
        ([3], None),
        ({"text": ["May"], "answer_start": [1, 2]}, None),
        ({"text": ["May"], "answer_start": 1}, None),
        ({"text": "May", "answer_start": [1]}, None),
        ("May", "twelve"),
        ("May", True),
        ("May", 1.5),
        ("May", "9" * 5000),
    ],
)
def test_what_is_no_answer_is_refused(value: object, start: object) -> None:
    where = Where(source="a.jsonl", line=3, field="answers")
    with pytest.raises(DataError) as caught:
        read_answers(value, where, start=start)
    assert (caught.value.code, caught.value.where) == ("answers-unusable", where)


def test_a_flat_row_has_its_answers_start_in_a_column_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "flat.csv"
    path.write_text("question,context,answer,answer_start\nWhen?,It rains in May.,May,12\n", encoding="utf-8")
    [row] = read(path, fields=FIELDS, targets=True)
    assert read_answers(row["answers"], start=row["answer_start"]) == (MAY,)


# --- where an answer stands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "expected"),
    [
        ("cat", 4, (4, 7, "as-given")),
        (" cat ", 3, (4, 7, "as-given")),  # space at its ends belongs to no answer
        ("dog", None, (16, 19, "only")),
        ("cat", None, (4, 7, "first")),
        ("cat", 5, (4, 7, "moved")),
        ("cat", 20, (24, 27, "moved")),
        ("cat", 10**9, (24, 27, "moved")),
        ("cow", 4, None),
        ("Cat", None, None),
    ],
)
def test_place(text: str, start: int | None, expected: tuple[int, int, str] | None) -> None:
    placed = place(GoldAnswer(text, start), "the cat and the dog and cat")
    assert (placed and (placed.start, placed.end, placed.placing)) == expected


@given(st.text("ab \u3000é", max_size=30), st.integers(0, 29), st.integers(1, 6), st.integers(-3, 40))
@settings(max_examples=150, deadline=None)
def test_a_placed_answer_spells_its_text(context: str, at: int, length: int, start: int) -> None:
    text = context[at : at + length]
    if not text.strip():
        return
    placed = place(GoldAnswer(text, start if start >= 0 else None), context)
    assert placed is not None
    assert context[placed.start : placed.end] == text.strip()
    occurrences = [i for i in range(len(context)) if context.startswith(text.strip(), i)]
    wanted = start + text.index(text.strip())
    if placed.placing in ("as-given", "moved"):
        assert abs(placed.start - wanted) == min(abs(i - wanted) for i in occurrences)
        assert (placed.placing == "as-given") == (wanted in occurrences)
    else:
        assert placed.start == occurrences[0]
        assert (placed.placing == "only") == (len(occurrences) == 1)


def test_rows_of_another_kind_keep_their_columns() -> None:
    [row] = read([Row({"query": "q", "passage": "p", "answer": "a", "id": 3})], fields=FIELDS, targets=True)
    assert row == {"question": "q", "context": "p", "answers": "a", "id": 3}
