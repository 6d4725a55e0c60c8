"""The fault catalogue, D32 to D37: encodings, line ends, giant lines, bad JSON, bad CSV."""

from __future__ import annotations

import codecs
import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from warmstart.errors import DataError, UsageError
from warmstart.rows import Field, Limits, RowStream, open_writer, read

FIELDS = (Field("text", ("sentence",), text=True), Field("label", target=True))
MIB = 1024 * 1024


@contextmanager
def within(seconds: float, mib: float) -> Iterator[None]:
    """Fails when the block takes longer, or allocates more at its peak."""
    start = time.process_time()
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < seconds
    assert peak < mib * MIB


def rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    return list(read(path, fields=FIELDS, **options))


def skipping(path: Path, **options: Any) -> tuple[list[dict[str, Any]], RowStream]:
    stream = read(path, fields=FIELDS, on_error="skip", **options)
    return list(stream), stream


def refusal(path: Path, **options: Any) -> DataError:
    with within(2, 64), pytest.raises(DataError) as caught:
        rows(path, **options)
    assert caught.value.fix
    return caught.value


def put(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


# D32: encodings

TWO = '{"text": "naïve"}\n{"text": "日本 🎬"}\n'


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", codecs.BOM_UTF8),
        ("utf-16-le", codecs.BOM_UTF16_LE),
        ("utf-16-be", codecs.BOM_UTF16_BE),
        ("utf-32-le", codecs.BOM_UTF32_LE),
        ("utf-32-be", codecs.BOM_UTF32_BE),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "txt"])
def test_d32_utf8_and_marked_encodings_are_read(tmp_path: Path, encoding: str, mark: bytes, form: str) -> None:
    text = {
        "jsonl": TWO,
        "json": '[{"text": "naïve"}, {"text": "日本 🎬"}]',
        "csv": "text\nnaïve\n日本 🎬\n",
        "txt": "naïve\n日本 🎬\n",
    }[form]
    path = put(tmp_path, f"a.{form}", mark + text.encode(encoding))
    assert rows(path) == [{"text": "naïve"}, {"text": "日本 🎬"}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_d32_latin1_is_refused_at_its_byte_and_read_when_pinned(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "plain"}\n{"text": "naïve"}\n'.encode(encoding))
    error = refusal(path)
    assert error.code == "encoding-invalid"
    assert (error.where.line, error.where.offset) == (2, path.read_bytes().index(b"\xef"))
    assert "encoding=" in error.fix
    assert rows(path, encoding=encoding) == [{"text": "plain"}, {"text": "naïve"}]


def test_d32_mixed_encodings_cost_only_the_bad_line(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", b"text\ngood\nna\xefve\nna\xc3\xafve\n")
    assert refusal(path).where.line == 3
    read_rows, stream = skipping(path)
    assert read_rows == [{"text": "good"}, {"text": "naïve"}]
    assert (stream.skipped, stream.errors[0].code) == (1, "encoding-invalid")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_d32_utf16_without_a_mark_is_recognised_not_read_as_nuls(tmp_path: Path, encoding: str) -> None:
    path = put(tmp_path, "a.txt", "a fine film\n".encode(encoding))
    error = refusal(path)
    assert error.code == "encoding-invalid"
    assert encoding in error.fix
    assert rows(path, encoding=encoding) == [{"text": "a fine film"}]


def test_d32_damaged_utf16_names_line_and_byte(tmp_path: Path) -> None:
    data = codecs.BOM_UTF16_LE + "one\ntwo\n".encode("utf-16-le") + b"\x00\xd8a\x00"  # a lone surrogate
    error = refusal(put(tmp_path, "a.txt", data))
    assert (error.code, error.where.line, error.where.offset) == ("encoding-invalid", 3, 18)


def test_d32_unknown_encoding_is_a_usage_error(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "x")
    for name in ("utf-99", "base64"):
        with pytest.raises(UsageError) as caught:
            rows(path, encoding=name)
        assert caught.value.code == "encoding-unknown"


# D33: line ends


def test_d33_only_line_feeds_separate_jsonl(tmp_path: Path) -> None:
    texts = ["a\u2028b\u2029c\x85d", "x\\ry", "\\u0000", "plain"]
    body = "\r\n".join(f'{{"text":\r"{text}"}}' for text in texts)  # a lone \r between tokens is JSON's white space
    assert [row["text"] for row in rows(put(tmp_path, "a.jsonl", body))] == [
        "a\u2028b\u2029c\x85d",
        "x\ry",
        "\0",
        "plain",
    ]


def test_d33_raw_nul_in_json_is_a_row_error_and_the_next_rows_count(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "b\0"}\n\0\n{"text": "c"}\n')
    assert (refusal(path).code, refusal(path).where.line) == ("json-invalid", 2)
    read_rows, stream = skipping(path)
    assert [row["text"] for row in read_rows] == ["a", "c"]
    assert [error.where.line for error in stream.errors] == [2, 3]


def test_d33_plain_text_keeps_everything_but_the_line_end(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "one\r\ntw\ro\n\nfo\u2028u\0r\n\nlast")
    stream = read(path, fields=FIELDS)
    assert [row["text"] for row in stream] == ["one", "tw\ro", "", "fo\u2028u\0r", "", "last"]
    assert [row.where.line for row in stream] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_d33_csv_records_end_at_any_line_end(tmp_path: Path, end: str) -> None:
    path = put(tmp_path, "a.csv", end.join(["text,id", '"a\rb\u2028",1', '"c\r\nd",2', "e\0f,3", ""]))
    stream = read(path, fields=FIELDS)
    assert [row["text"] for row in stream] == ["a\rb\u2028", "c\r\nd", "e\0f"]
    assert [row["id"] for row in stream] == ["1", "2", "3"]


# D34: a giant line


def test_d34_line_of_two_gigabytes_is_passed_over_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(b'{"text": "first"}\n{"text": "' + b"a" * 4096)
        stream.seek(2**31)  # a hole: no disk is used
        stream.write(b'"}\n{"text": "last"}\n')
    with within(10, 100):
        read_rows, result = skipping(path)
    assert [row["text"] for row in read_rows] == ["first", "last"]
    (error,) = result.errors
    assert (error.code, error.where.line, error.where.offset) == ("line-too-long", 2, 18)
    assert str(2**31 - 18 + 3) in str(error.value)


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_d34_a_long_line_under_the_limit_is_read(tmp_path: Path, form: str) -> None:
    text = "a" * 10 * MIB
    body = {"jsonl": f'{{"text": "{text}"}}\n', "csv": f"text\n{text}\n", "txt": text}[form]
    with within(2, 128):
        assert rows(put(tmp_path, f"a.{form}", body)) == [{"text": text}]
    error = refusal(tmp_path / f"a.{form}", limits=Limits(max_line_bytes=MIB))
    assert (error.code, error.where.line) == ("line-too-long", 2 if form == "csv" else 1)


# D35: a bad line


def test_d35_bad_line_fails_or_is_skipped_with_its_offset(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "ä"}\n{"text": "b"\n["text"]\n\n{"text": "c"}\n')
    error = refusal(path)
    assert (error.code, error.where.source, error.where.line) == ("json-invalid", str(path), 2)
    assert error.where.offset == 15 + 12  # where the parser stopped: the end of line 2
    read_rows, stream = skipping(path)
    assert [(row["text"], row.where.line, row.where.row) for row in read_rows] == [("ä", 1, 0), ("c", 5, 3)]
    assert [error.code for error in stream.errors] == ["json-invalid", "row-not-object"]
    assert [error.where.line for error in stream.errors] == [2, 3]
    assert stream.skipped == 2


def test_d35_kept_errors_are_bounded_and_all_are_counted(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl", '{"text": "a"}\n' + "bad\n" * 5000)
    read_rows, stream = skipping(path)
    assert (len(read_rows), stream.skipped, len(stream.errors)) == (1, 5000, 100)
    assert len(list(stream)) == 1
    assert stream.skipped == 5000  # of the last pass, not of both


def test_d35_healthy_twin_has_no_errors(tmp_path: Path) -> None:
    read_rows, stream = skipping(put(tmp_path, "a.jsonl", '{"text": "ä"}\n{"text": "b"}'))
    assert (len(read_rows), stream.skipped, stream.errors) == (2, 0, [])


# D36: what Python's parser would let through


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"text": "a", "text": "b"}', "json-duplicate-key"),
        ('{"text": "a", "more": {"x": 1, "x": 2}}', "json-duplicate-key"),
        ('{"text": "a", "score": NaN}', "json-number"),
        ('{"text": "a", "score": -Infinity}', "json-number"),
        ('{"text": "a", "score": 1e999}', "json-number"),
        ('{"text": "a", "score": ' + "9" * 5000 + "}", "json-number"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "json-too-deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "json-too-deep"),
        ("[" * 100_000, "json-too-deep"),
        ('"' + '\\"' * 100_000 + "[" * 100, "json-invalid"),
    ],
)
def test_d36_json_that_means_nothing_is_a_row_error(tmp_path: Path, line: str, code: str) -> None:
    path = put(tmp_path, "a.jsonl", f'{{"text": "good"}}\n{line}\n{{"text": "good too"}}\n')
    error = refusal(path)
    assert (error.code, error.where.line) == (code, 2)
    read_rows, stream = skipping(path)
    assert (len(read_rows), stream.skipped) == (2, 1)
    document = put(tmp_path, "a.json", f'[{{"text": "good"}},\n{line}]')
    assert refusal(document).code in (code, "json-invalid")


def test_d36_healthy_twin_of_brackets_in_strings_and_allowed_depth(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(60):
        deep = [deep]
    row = {"text": "[{" * 1000 + '"', "deep": deep, "n": 1e300, "i": 10**100}
    assert rows(put(tmp_path, "a.jsonl", json.dumps(row))) == [row]
    assert rows(put(tmp_path, "a.json", json.dumps([row]))) == [row]


# D37: quotes and formulas in CSV


@pytest.mark.parametrize("tail", [2, 20_000])
def test_d37_unclosed_quote_is_reported_at_its_line_and_costs_one_row(tmp_path: Path, tail: int) -> None:
    path = put(tmp_path, "a.csv", 'id,text\n1,good\n2,"never closed\n' + "".join(f"{n},x\n" for n in range(tail)))
    error = refusal(path)
    assert (error.code, error.where.line, error.where.offset) == ("csv-unclosed-quote", 3, 15)
    read_rows, stream = skipping(path)
    assert (len(read_rows), stream.skipped) == (1 + tail, 1)


def test_d37_the_line_that_opens_the_quote_is_named_not_the_records_first(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'id,text\n"1\n2\n3","open\nstill\n')
    assert refusal(path).where.line == 4


def test_d37_quotes_that_swallow_lines_are_bounded(tmp_path: Path) -> None:
    # Every line closes the field that the line before opened, and opens another: one record to the end of the file.
    path = put(tmp_path, "a.csv", 'text\n"a\n' + 'x","z\n' * 5_000)
    with within(10, 64), pytest.raises(DataError) as caught:
        skipping(path)
    assert caught.value.code == "csv-unclosed-quote"


@pytest.mark.parametrize("line", ['1,"he said "hi" to me"', '1,"closed" ', '"1"x,a'])
def test_d37_text_after_a_closing_quote_is_an_error(tmp_path: Path, line: str) -> None:
    path = put(tmp_path, "a.csv", f"id,text\n{line}\n2,good\n")
    assert (refusal(path).code, refusal(path).where.line) == ("csv-stray-quote", 2)
    assert skipping(path)[0] == [{"id": "2", "text": "good"}]


@pytest.mark.parametrize(("line", "count"), [("1", 1), ("1,a,b", 3), ("1,a,", 3)])
def test_d37_ragged_records_are_errors_with_their_line(tmp_path: Path, line: str, count: int) -> None:
    path = put(tmp_path, "a.csv", f'id,text\n0,"two\nlines"\n{line}\n2,good\n')
    error = refusal(path)
    assert (error.code, error.where.line) == ("csv-ragged", 4)
    assert f"{count} fields" in error.what
    assert [row["id"] for row in skipping(path)[0]] == ["0", "2"]


def test_d37_healthy_twin_of_quotes_across_lines(tmp_path: Path) -> None:
    path = put(tmp_path, "a.csv", 'id,text\n1,"say ""hi"",\nthen go"\n2,5" pipe\n\n3,""\n')
    stream = read(path, fields=FIELDS)
    assert [row["text"] for row in stream] == ['say "hi",\nthen go', '5" pipe', ""]
    assert [row.where.line for row in stream] == [2, 4, 6]


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_d37_formulas_are_escaped_on_export_and_counted(
    tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a.{form}"
    with open_writer(path) as writer:
        for formula in FORMULAS:
            writer.write({"text": formula, "=x": 1})
    assert [row["text"] for row in read(path, fields=FIELDS)] == [f"'{formula}" for formula in FORMULAS]
    assert next(iter(read(path, fields=FIELDS)))["'=x"] == "1"
    assert f"{len(FORMULAS) + 1} values" in caplog.text


def test_d37_healthy_twin_numbers_and_dashes_inside_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.csv"
    with open_writer(path) as writer:
        writer.write({"text": "a = b", "score": -0.5, "written": "-1.5e-3"})
    assert rows(path) == [{"text": "a = b", "score": "-0.5", "written": "-1.5e-3"}]
    assert not caplog.records
