"""`read` and `texts`: every kind of source gives the same rows."""

from __future__ import annotations

import gzip
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warmstart.errors import DataError, UsageError, Where
from warmstart.rows import Field, Limits, Row, RowStream, read, texts

FIELDS = (
    Field("text", ("sentence",), text=True),
    Field("text_pair", (), required=False, text=True),
    Field("label", ("labels",), target=True),
)
ROWS = [{"text": "a fine film", "label": "pos"}, {"text": 'say "no", twice', "label": "neg"}]
TABLE = pa.Table.from_pylist(ROWS)
CSV = 'text,label\na fine film,pos\n"say ""no"", twice",neg\n'
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


def arrow(kind: Callable[..., Any]) -> bytes:
    sink = io.BytesIO()
    with kind(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue()


FILES = {
    "a.jsonl": JSONL.encode(),
    "a.ndjson": JSONL.encode(),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "one.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": JSONL.encode(),
    "a.csv": CSV.encode(),
    "semicolons.csv": CSV.replace("text,label", "text;label").replace(",pos", ";pos").replace(",neg", ";neg").encode(),
    "a.tsv": CSV.replace("text,label", "text\tlabel").replace(",pos", "\tpos").replace(",neg", "\tneg").encode(),
    "a.parquet": parquet(),
    "a.feather": arrow(pa.ipc.new_file),
    "a.arrow": arrow(pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(FILES[name]) if zipped else FILES[name])
    stream = read(path, fields=FIELDS, targets=True)
    assert list(stream) == list(stream) == ROWS
    assert stream.columns == {"text": "text", "label": "label"}
    assert stream.source == str(path)
    assert [row.where.row for row in stream] == [0, 1]
    assert {row.where.source for row in stream} == {str(path)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: tuple(ROWS),
        lambda: [Row(row) for row in ROWS],
        lambda: datasets.Dataset.from_list(ROWS),
        lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
        lambda: pd.DataFrame(ROWS),
        lambda: pl.DataFrame(ROWS),
        lambda: TABLE,
        lambda: TABLE.to_batches()[0],
    ],
)
def test_every_object_in_memory_gives_the_same_rows_every_time(make: Callable[[], Any]) -> None:
    stream = read(make(), fields=FIELDS, targets=True)
    assert list(stream) == list(stream) == ROWS
    assert [row.where.row for row in stream] == [0, 1]


@pytest.mark.parametrize("make", [lambda: iter(ROWS), lambda: TABLE.to_reader()])
def test_what_comes_once_is_read_once_and_says_so(make: Callable[[], Any]) -> None:
    stream = read(make(), fields=FIELDS)
    assert list(stream) == ROWS
    with pytest.raises(DataError) as caught:
        iter(stream)
    assert caught.value.code == "source-exhausted"


def test_an_iterator_is_read_no_further_than_it_is_used() -> None:
    taken = []

    def rows() -> Iterator[str]:
        for n in range(100):
            taken.append(n)
            yield str(n)

    stream = iter(read(rows(), fields=FIELDS))
    assert [next(stream)["text"], next(stream)["text"]] == ["0", "1"]
    assert len(taken) == 2


def test_strings_pairs_and_rows_mix_and_rows_keep_their_place() -> None:
    where = Where("a.csv", line=4)
    data = ["a", ("b", "c"), {"text": "d"}, Row({"text": "e"}, where), np.str_("f")]
    rows = list(read(data, fields=FIELDS))
    assert rows == [{"text": "a"}, {"text": "b", "text_pair": "c"}, {"text": "d"}, {"text": "e"}, {"text": "f"}]
    assert [row.where for row in rows][2:4] == [Where(row=2), where]
    assert type(rows[4]["text"]) is str


@pytest.mark.parametrize("item", [3, None, ["a", "b"], ("a", 1), ("a", "b", "c"), {1: "a"}])
def test_items_that_are_no_rows_name_their_position(item: object) -> None:
    with pytest.raises(DataError) as caught:
        list(texts(["a", item]))
    assert (caught.value.code, caught.value.where.row) == ("row-not-object", 1)
    stream = read(["a", item], fields=FIELDS, on_error="skip")
    assert (len(list(stream)), stream.skipped) == (1, 1)


@pytest.mark.parametrize("data", [{"text": ["a", "b"]}, 3, b"text", None, pl.LazyFrame({"text": ["a"]})])
def test_what_holds_no_rows_is_refused_with_what_to_give(data: object) -> None:
    with pytest.raises(DataError) as caught:
        read(data, fields=FIELDS)
    assert caught.value.code == "data-not-rows"


def test_a_dict_of_splits_asks_which() -> None:
    with pytest.raises(UsageError) as caught:
        read(datasets.DatasetDict(test=datasets.Dataset.from_list(ROWS)), fields=FIELDS)
    assert (caught.value.code, caught.value.fix) == ("split-not-chosen", "choose one: data['test']")


def test_texts_takes_a_string_for_a_text_and_one_item_for_a_list(tmp_path: Path) -> None:
    assert list(texts(str(tmp_path))) == [{"text": str(tmp_path)}]
    assert list(texts({"text": "a"})) == [{"text": "a"}]
    assert list(texts(("a", "b"))) == [{"text": "a", "text_pair": "b"}]
    assert list(texts(["a", "b"])) == [{"text": "a"}, {"text": "b"}]
    assert list(texts(["a"], names=("query",))) == [{"query": "a"}]
    assert [row.where for row in texts(iter(["a", "b"]))] == [Where(row=0), Where(row=1)]


def test_missing_values_of_frames_are_none() -> None:
    frame = pd.DataFrame({"text": ["a", "b"], "n": [1.5, None], "when": [pd.Timestamp("2026-01-01"), pd.NaT]})
    rows = list(read(frame, fields=FIELDS))
    assert (rows[0]["n"], rows[1]["n"], rows[1]["when"]) == (1.5, None, None)
    with pytest.raises(DataError) as caught:
        list(read(pd.DataFrame({"text": ["a", None]}), fields=FIELDS))
    assert (caught.value.code, caught.value.where.row) == ("field-missing", 1)
    with pytest.raises(DataError) as caught:
        read(pd.DataFrame([["a", "b"]], columns=["text", "text"]), fields=FIELDS)
    assert caught.value.code == "column-duplicate"


def labelled() -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    return datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)


def test_class_ids_of_datasets_become_names(tmp_path: Path) -> None:
    labelled().to_parquet(tmp_path / "a.parquet")
    labelled().save_to_disk(tmp_path / "saved")
    (saved,) = (tmp_path / "saved").glob("*.arrow")
    for data in (labelled(), tmp_path / "a.parquet", saved, labelled().data.table):
        stream = read(data, fields=FIELDS, targets=True, on_error="skip")
        assert [row["label"] for row in stream] == ["pos", "neg"]
        assert stream.errors[0].code == "field-missing"  # -1: no label
        assert [row["label"] for row in read(data, fields=FIELDS)] == [1, 0, -1]  # not matched, not touched


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> RowStream:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return read("-", fields=FIELDS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jsonl", "JSONL"),
        ("a.json", "one JSON document"),
        ("a.csv", "','"),
        ("a.tsv", r"'\t'"),
        ("semicolons.csv", "';'"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_stdin_is_told_by_its_first_line(monkeypatch: pytest.MonkeyPatch, name: str, said: str, zipped: bool) -> None:
    stream = stdin(monkeypatch, gzip.compress(FILES[name]) if zipped else FILES[name])
    assert list(stream) == ROWS
    assert said in stream.guessed[0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"one, two\nthree\n", ["one, two", "three"]),
        (b"a line\n\n", ["a line", ""]),
        (b"text\na\n", ["a"]),
        ("naïve\n".encode("utf-16"), ["naïve"]),
        (b"", []),
    ],
)
def test_stdin_may_be_plain_text(monkeypatch: pytest.MonkeyPatch, data: bytes, expected: list[str]) -> None:
    assert [row["text"] for row in stdin(monkeypatch, data)] == expected


def test_stdin_of_one_column_is_read_as_its_file_would_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = b'text\n"one\ntwo, ""three"""\nplain\n'
    (tmp_path / "a.csv").write_bytes(data)
    rows = list(stdin(monkeypatch, data))
    assert rows == list(read(tmp_path / "a.csv", fields=FIELDS)) == [{"text": 'one\ntwo, "three"'}, {"text": "plain"}]


def test_stdin_refuses_what_needs_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        stdin(monkeypatch, parquet())
    assert caught.value.code == "format-not-streamable"


def test_a_pipe_gives_each_row_as_it_comes() -> None:
    program = (
        "from warmstart.rows import Field, read\n"
        "for row in read('-', fields=(Field('text'),)): print(row['text'], flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        for text in ("first", "second"):
            child.stdin.write(f'{{"text": "{text}"}}\n')
            assert child.stdout.readline() == f"{text}\n"  # before the pipe is closed
        child.stdin.close()


def test_importing_rows_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "pyarrow", "pandas", "numpy"}
    program = f"import sys, warmstart.rows; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_memory_is_bounded_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        for n in range(1000):
            stream.write(json.dumps({"text": str(n) * 20_000}).encode()[:40_000].rstrip(b'"}') + b'"}\n')
    program = (
        "import resource, sys\nfrom warmstart.rows import Field, read\n"
        "rows = read(sys.argv[1], fields=(Field('text'),))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "count = sum(1 for _ in rows)\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    found = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    count, grown = map(int, found.stdout.split())
    assert (count, grown < 8 * 1024) == (1000, True)  # KiB, of a file of 40 MB
    assert path.stat().st_size > 30 * 2**20


def test_no_rows_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "a.csv", "a.txt", "a.json"):
        (tmp_path / name).write_text("")
        caplog.clear()
        assert list(read(tmp_path / name, fields=FIELDS)) == []
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("text", ["3", '"text"', '[{"text": "a"},]', '[{"text": "a"}] x', '[{"text": "a"}', '{"a": 1}'])
def test_json_documents_that_are_no_rows(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f"\n{text}")
    with pytest.raises(DataError) as caught:
        list(read(path, fields=FIELDS))
    assert caught.value.code in ("json-not-rows", "json-invalid", "column-missing")
    assert caught.value.where.source == str(path)


def test_documents_and_columns_have_limits(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS))
    with pytest.raises(DataError) as caught:
        list(read(path, fields=FIELDS, limits=Limits(max_document_bytes=20)))
    assert caught.value.code == "json-too-large"
    wide = {"text": "a", **{f"c{n}": 1 for n in range(9)}}
    for data in ([{"text": "a", f"c{n}": 1} for n in range(9)], pl.DataFrame([wide])):
        with pytest.raises(DataError) as caught:
            list(read(data, fields=FIELDS, limits=Limits(max_columns=5)))
        assert caught.value.code == "columns-too-many"


def test_calls_that_make_no_sense() -> None:
    for options, code in (({"on_error": "ignore"}, "on-error-unknown"), ({"encoding": "utf-8"}, "encoding-unused")):
        with pytest.raises(UsageError) as caught:
            read(ROWS, fields=FIELDS, **options)  # type: ignore[arg-type]
        assert caught.value.code == code


TSV = [
    ("text\tlabel", []),
    ('"a ""b"""\tx', ['a "b"']),
    ('"Hi" she said\tx', ['"Hi" she said']),
    ('"never closed\tx', ['"never closed']),
    ("plain\tx", ["plain"]),
    ('"over\ntwo lines"\tx', ["over\ntwo lines"]),
    ('"with\ttab"\tx', ["with\ttab"]),
    ('"open to the end\tx', ['"open to the end']),
]


def test_tsv_quotes_count_where_they_work_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("\n".join(line for line, _ in TSV))
    stream = read(path, fields=FIELDS, targets=True)
    assert [row["text"] for row in stream] == [text for _, found in TSV for text in found]
    assert {row["label"] for row in stream} == {"x"}
    assert len([said for said in stream.guessed if "quote" in said]) == 1
    assert f"{path}:3" in stream.guessed[-1]
