"""Writing rows: what is read back equals what was written, and a file appears whole or not at all."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import stat
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.rows import Field, open_writer, read

FIELDS = (Field("text"),)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


def round_trip(name: str, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        with open_writer(path, **options) as writer:
            for row in rows:
                writer.write(row)
        assert writer.rows == len(rows)
        return [dict(row) for row in read(path, fields=FIELDS)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.text(), NESTED, max_size=3).map(lambda more: {**more, "text": "x"}), max_size=4))
def test_jsonl_gives_back_any_rows(rows: list[dict[str, Any]]) -> None:
    assert round_trip("a.jsonl", rows) == rows


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT.map(lambda name: f"c{name.strip()}"), unique=True, max_size=3), st.data())
def test_csv_gives_back_any_strings(columns: list[str], data: st.DataObject) -> None:
    row = st.fixed_dictionaries({"text": TEXT, **dict.fromkeys(columns, TEXT)})
    rows = data.draw(st.lists(row, max_size=4))
    assert round_trip("a.csv", rows, escape_formulas=False) == rows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(TEXT, min_size=2, max_size=2), max_size=4),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_what_the_csv_module_writes_is_read_as_it_was(rows: list[list[str]], quoting: int, end: str) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, quoting=quoting, lineterminator=end).writerows([["text", "label"], *rows])  # type: ignore[arg-type]
    # It leaves a lone line end of another kind unquoted, which it cannot read itself.
    assume(list(csv.reader(io.StringIO(written.getvalue(), newline="")))[1:] == rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(written.getvalue().encode())
        assert [list(row.values()) for row in read(path, fields=FIELDS)] == rows


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_parquet_gives_back_columns_of_one_type(data: st.DataObject) -> None:
    kinds = st.sampled_from(
        [TEXT, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.lists(TEXT, max_size=3)]
    )
    names = data.draw(st.lists(TEXT.filter(bool), unique=True, max_size=3))
    columns = {name: st.none() | data.draw(kinds) for name in names if name != "text"}
    rows = data.draw(st.lists(st.fixed_dictionaries({"text": TEXT, **columns}), max_size=4))
    assert round_trip("a.parquet", rows) == rows


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz", "a.tsv", "a.tsv.gz", "a.ndjson"])
def test_other_suffixes_round_trip(name: str) -> None:
    rows = [{"text": 'say "hi",\tthen\ngo', "label": "pos"}, {"text": "", "label": "ns"}]
    assert round_trip(name, rows) == rows


def test_gzip_output_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        with open_writer(tmp_path / name) as writer:
            writer.write({"text": "a"})
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_parquet_in_several_row_groups_keeps_order_and_empty_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"text": str(n), "score": n / 2, "empty": None, "list": []} for n in range(10_000)]
    with open_writer(path) as writer:
        for row in rows:
            writer.write(row)
    assert list(read(path, fields=FIELDS)) == rows
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    with open_writer(tmp_path / "none.parquet"):
        pass
    assert list(read(tmp_path / "none.parquet", fields=FIELDS)) == []


def test_lone_surrogates_survive_in_json_and_are_replaced_elsewhere() -> None:
    rows = [{"text": "a\ud800b"}]
    assert round_trip("a.jsonl", rows) == rows
    for name in ("a.csv", "a.parquet"):
        assert round_trip(name, rows) == [{"text": "a\ufffdb"}]


def test_values_of_other_types(tmp_path: Path) -> None:
    row = {
        "text": np.str_("a"),
        "score": np.float32(0.5),
        "vector": np.arange(2),
        "when": datetime.date(2026, 1, 2),
        "price": Decimal("1.10"),
        "scores": {"pos": 0.5},
        "yes": True,
        "no": None,
    }
    assert round_trip("a.jsonl", [row]) == [
        {"text": "a", "score": 0.5, "vector": [0, 1], "when": "2026-01-02", "price": "1.10", "scores": {"pos": 0.5},
         "yes": True, "no": None}
    ]  # fmt: skip
    (found,) = round_trip("a.csv", [row])
    assert list(found.values()) == ["a", "0.5", "[0, 1]", "2026-01-02", "1.10", '{"pos": 0.5}', "true", ""]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", object(), {1, 2}])
def test_what_json_has_no_form_for_is_refused_and_leaves_no_file(tmp_path: Path, value: object) -> None:
    with pytest.raises(DataError) as caught, open_writer(tmp_path / "a.jsonl") as writer:
        writer.write({"text": "a", "value": value})
    assert caught.value.code == "value-not-json"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "rows", "code"),
    [
        ("a.csv", [{"a": 1}, {"b": 1}], "write-new-column"),
        ("a.parquet", [{"a": 1}] * 5000 + [{"b": 1}], "write-new-column"),
        ("a.parquet", [{"a": 1}, {"a": "x"}], "parquet-mixed-types"),
        ("a.parquet", [{"a": 1}] * 5000 + [{"a": 0.5}], "parquet-mixed-types"),
        ("a.parquet", [{"a": 2**70}], "parquet-mixed-types"),
        ("a.parquet", [{"a": {}}], "parquet-mixed-types"),
    ],
)
def test_tables_refuse_rows_that_do_not_fit(tmp_path: Path, name: str, rows: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(DataError) as caught, open_writer(tmp_path / name) as writer:
        for row in rows:
            writer.write(row)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_the_rows_fields_stand_before_the_prediction_under_their_own_names(tmp_path: Path) -> None:
    stream = read(
        [{"id": 7, "review": "good", "label": "pos", "input_label": "x"}], fields=(Field("text", ("review",)),)
    )
    (row,) = stream
    with open_writer(tmp_path / "a.jsonl", columns=stream.columns) as writer:
        writer.write({"label": "positive", "score": 0.5}, row)
        writer.write({"label": "positive"})
    first, second = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert list(first.items()) == [
        ("id", 7),
        ("review", "good"),
        ("input_label", "pos"),
        ("input_input_label", "x"),
        ("label", "positive"),
        ("score", 0.5),
    ]
    assert second == {"label": "positive"}


def test_a_file_is_replaced_only_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    with open_writer(path) as writer:
        writer.write({"text": "new"})
        assert path.read_text() == "old"
    assert path.read_text() == '{"text": "new"}\n'
    with pytest.raises(KeyboardInterrupt), open_writer(path) as writer:
        writer.write({"text": "newer"})
        raise KeyboardInterrupt
    assert path.read_text() == '{"text": "new"}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
    writer.close()  # closing again does nothing


def test_what_a_kill_left_goes_with_the_next_writing_and_what_another_writes_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    (tmp_path / ".a.jsonl.tmp-0123456789ab").write_text("half")
    with open_writer(path) as first:
        first.write({"n": 1})
        [hidden] = list(tmp_path.iterdir())
        with open_writer(path) as second:
            second.write({"n": 2})
            assert hidden in tmp_path.iterdir()
        assert json.loads(path.read_text())["n"] == 2
    assert json.loads(path.read_text())["n"] == 1 and [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_permissions_come_from_the_umask_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    before = os.umask(0o027)
    try:
        with open_writer(tmp_path / "link.jsonl") as writer:
            writer.write({"text": "new"})
    finally:
        os.umask(before)
    assert (tmp_path / "link.jsonl").is_symlink()
    assert "new" in (tmp_path / "real.jsonl").read_text()
    assert stat.S_IMODE((tmp_path / "real.jsonl").stat().st_mode) == 0o640


def test_devices_are_written_to_directly() -> None:
    with open_writer("/dev/null", format="jsonl") as writer:
        writer.write({"text": "a"})
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_full_disk_is_an_error_that_names_the_file() -> None:
    with pytest.raises(WarmstartError) as caught, open_writer("/dev/full", format="jsonl") as writer:
        for _ in range(10_000):
            writer.write({"text": "a" * 100})
    assert (caught.value.code, caught.value.where.source) == ("output-failed", "/dev/full")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a.xlsx", "format-unknown"),
        ("a.txt", "format-unknown"),
        ("a.parquet.gz", "format-unknown"),
        ("missing/a.jsonl", "output-folder-missing"),
        ("folder.jsonl", "output-is-folder"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UsageError) as caught:
        open_writer(tmp_path / name)
    assert caught.value.code == code
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.jsonl"]


def test_standard_output_shows_each_row_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(binary)))  # type: ignore[type-var]
    with open_writer("-") as writer:
        writer.write({"text": "naïve"})
        assert binary.getvalue() == '{"text": "naïve"}\n'.encode()
    with open_writer("-", format="csv") as writer:
        writer.write({"text": "a"})
    assert binary.getvalue().endswith(b"text\na\n")
    with pytest.raises(UsageError) as caught:
        open_writer("-", format="parquet")
    assert caught.value.code == "format-not-streamable"


def test_names_that_are_long_or_lead_nowhere(tmp_path: Path) -> None:
    name = "ж" * 120 + ".jsonl"  # 246 bytes: a longer name for the part would not fit
    with open_writer(tmp_path / name) as writer:
        writer.write({"text": "a"})
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    loop = tmp_path / "loop.jsonl"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / "a\0.jsonl"):
        with pytest.raises(WarmstartError) as caught:
            open_writer(path)
        assert caught.value.code == "output-failed"
