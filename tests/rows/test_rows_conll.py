"""CoNLL files: sentences, columns, comments, and what is wrong at which line."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from warmstart.errors import DataError
from warmstart.rows import Field, Limits, read

FIELDS = (
    Field("text", text=True, instead="tokens"),
    Field("tokens", required=False),
    Field("tags", ("ner_tags",), required=False, target=True),
)
DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"


def rows_of(path: Path, text: str, **options: object) -> list[dict[str, object]]:
    path.write_text(text, encoding="utf-8", newline="")
    return [dict(row) for row in read(path, fields=FIELDS, targets=True, **options)]  # type: ignore[arg-type]


PARIS = {"tokens": ["Paris", "is", "big"], "tags": ["B-LOC", "O", "O"]}
ANN = {"tokens": ["Ann"], "tags": ["B-PER"]}


@pytest.mark.parametrize(
    "text",
    [
        "Paris\tB-LOC\nis\tO\nbig\tO\n\nAnn\tB-PER\n",
        "Paris\tB-LOC\nis\tO\nbig\tO\n\n\n \t\nAnn\tB-PER",  # blank lines in a row, no end
        "\r\nParis B-LOC\r\nis O\r\nbig   O\r\n\r\nAnn B-PER\r\n",
        "\ufeff# id 1\tdomain=x\nParis\tB-LOC\nis\tO\nbig\tO\n\n# text = Ann\nAnn\tB-PER\n",
        "-DOCSTART- -X- O\n\nParis B-LOC\nis O\nbig O\n\n-DOCSTART- -X- O\n\nAnn B-PER\n",
    ],
    ids=["tabs", "blank", "spaces", "comments", "documents"],
)
def test_sentences(tmp_path: Path, text: str) -> None:
    assert rows_of(tmp_path / "a.conll", text) == [PARIS, ANN]


def test_a_hash_may_be_a_token(tmp_path: Path) -> None:
    text = "#\tO\nParis\tB-LOC\n\n# O\nAnn B-PER\n\n#love\tO\n"
    assert [row["tokens"] for row in rows_of(tmp_path / "a.conll", text)] == [["#", "Paris"], ["#", "Ann"], ["#love"]]


def test_columns_between_are_kept_and_can_be_pinned(tmp_path: Path) -> None:
    text = "Ann NNP B-NP B-PER\nsings VBZ B-VP O\n"
    [row] = rows_of(tmp_path / "a.conll", text)
    assert row == {
        "tokens": ["Ann", "sings"],
        "column_2": ["NNP", "VBZ"],
        "column_3": ["B-NP", "B-VP"],
        "tags": ["B-PER", "O"],
    }
    [row] = rows_of(tmp_path / "a.conll", text, columns={"tags": "column_2"})
    assert (row["tags"], row["input_tags"]) == (["NNP", "VBZ"], ["B-PER", "O"])


def test_tokens_alone_are_rows_to_predict(tmp_path: Path) -> None:
    (tmp_path / "a.conll.gz").write_bytes(gzip.compress(b"Ann\nsings\n\nParis\n"))
    assert list(read(tmp_path / "a.conll.gz", fields=FIELDS)) == [{"tokens": ["Ann", "sings"]}, {"tokens": ["Paris"]}]


def test_a_row_knows_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.iob2"
    path.write_text("\n# text\nParis\tO\n\n\nAnn\tO\n")
    assert [(row.where.line, row.where.row) for row in read(path, fields=FIELDS)] == [(3, 0), (6, 1)]


def test_what_is_passed_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "warmstart"):
        rows_of(tmp_path / "a.conll", "# one\nAnn\tO\n\n# two\nAnn\tO\n")
    assert sum("passed over" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a\tO\nb\tx\tO\n\nc\tO\n", "conll-columns", 2),
        ("a\tO\nb\n\nc\tO\n", "conll-columns", 2),
        ("a\tO\n\tO\n\nc\tO\n", "conll-columns", 2),
        ("a\tO\nlong-token\tO\nlong-token\tO\nlong-token\tO\n\nc\tO\n", "line-too-long", 1),
    ],
)
def test_a_bad_sentence_is_one_error(tmp_path: Path, text: str, code: str, line: int) -> None:
    path = tmp_path / "a.conll"
    limits = Limits(max_line_bytes=32)
    with pytest.raises(DataError) as caught:
        rows_of(path, text, limits=limits)
    assert (caught.value.code, caught.value.where.line, caught.value.where.row) == (code, line, 0)
    stream = read(path, fields=FIELDS, targets=True, on_error="skip", limits=limits)
    assert [row["tokens"] for row in stream] == [["c"]]  # the next sentence is read
    assert stream.skipped == 1


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
def test_the_real_files() -> None:
    sizes = {}
    for part in ("train", "validation", "test"):
        rows = list(read(DATA / "entities" / f"{part}.conll", fields=FIELDS, targets=True))
        assert all(len(row["tokens"]) == len(row["tags"]) > 0 for row in rows)
        sizes[part] = (len(rows), sum(len(row["tokens"]) for row in rows))
    assert sizes == {"train": (3394, 62730), "validation": (1009, 15733), "test": (1287, 23394)}
