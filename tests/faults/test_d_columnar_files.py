"""The fault catalogue, D45: Parquet and Arrow files cut short, lying, bombs, nested types."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from warmstart.errors import DataError
from warmstart.rows import Field, Limits, RowStream, read

FIELDS = (Field("text", text=True),)
TEXTS = [f"a film of {n} minutes, naïve and long" for n in range(5000)]


def refusal(path: Path, **options: Any) -> DataError:
    pool = pa.default_memory_pool()
    peak, before = pool.max_memory(), pool.bytes_allocated()
    start = time.process_time()
    with pytest.raises(DataError) as caught:
        list(read(path, fields=FIELDS, **options))
    assert time.process_time() - start < 2
    assert pool.max_memory() <= max(peak, before + path.stat().st_size + 64 * 2**20)
    assert caught.value.where.source == str(path)
    return caught.value


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=1000)
    elif path.suffix == ".feather":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    return path


FORMS = ["parquet", "feather", "arrow"]


@pytest.mark.parametrize("form", FORMS)
def test_d45_truncated_at_100_points(tmp_path: Path, form: str) -> None:
    data = write(tmp_path / f"whole.{form}", pa.table({"text": TEXTS[:300]})).read_bytes()
    points = [*random.Random(0).sample(range(1, len(data)), 90), *range(len(data) - 9, len(data)), 0]
    assert len(points) == 100
    for point in points:
        path = tmp_path / f"cut.{form}"
        path.write_bytes(data[:point])
        assert refusal(path).code in ("parquet-damaged", "arrow-damaged"), point


@pytest.mark.parametrize("form", FORMS)
def test_d45_flipped_bytes_give_rows_or_a_typed_error(tmp_path: Path, form: str) -> None:
    data = bytearray(write(tmp_path / f"whole.{form}", pa.table({"text": TEXTS[:50], "n": range(50)})).read_bytes())
    numbers = random.Random(1)
    path = tmp_path / f"flipped.{form}"
    codes = set()
    for _ in range(120):
        flipped = bytearray(data)
        flipped[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        path.write_bytes(flipped)
        start = time.process_time()
        try:
            count = len(list(read(path, fields=FIELDS)))
        except DataError as error:
            codes.add(error.code)
        else:
            assert count <= 50
        assert time.process_time() - start < 2
    assert codes & {"parquet-damaged", "arrow-damaged"}


@pytest.mark.parametrize("form", FORMS)
def test_d45_healthy_twin_is_read_batch_by_batch(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", pa.table({"text": TEXTS, "n": range(5000)}))
    stream = read(path, fields=FIELDS, limits=Limits(max_batch_bytes=10_000))
    assert [row["text"] for row in stream] == TEXTS
    assert [row["n"] for row in stream] == list(range(5000))
    assert [row.where.row for row in stream] == list(range(5000))


def test_d45_decompression_bomb_is_refused_by_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    table = pa.table({"text": pa.array(["a" * 1000] * 100_000)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, data_page_size=2**20)
    assert path.stat().st_size < 200_000
    error = refusal(path)
    assert error.code == "decompression-bomb"
    assert "max_ratio" in error.fix
    stream = read(path, fields=FIELDS, limits=Limits(max_ratio=10_000))
    assert next(iter(stream))["text"] == "a" * 1000


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nested", [False, True])
def test_d45_one_large_value_that_every_row_repeats_is_read_in_bounded_memory(
    tmp_path: Path, form: str, nested: bool
) -> None:
    text, count = "a" * 2_000_000, 200  # 400 MB, of which the file holds 2 MB at most
    values = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([text]))
    strings = pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), values) if nested else values
    path = write(tmp_path / f"a.{form}", pa.table({"text": ["a"] * count, "more": strings}))
    assert path.stat().st_size < 3_000_000
    pool = pa.default_memory_pool()
    peak, before = pool.max_memory(), pool.bytes_allocated()
    tracemalloc.start()
    try:
        seen = sum(row["more"] == ([text] if nested else text) for row in read(path, fields=FIELDS))
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
    assert seen == count
    assert pool.max_memory() <= max(peak, before + 64 * 2**20)


def test_d45_lying_row_counts_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": TEXTS[:77]}))
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    # The count of rows is a zigzag varint: 77 is written as 154, that is 0x9a 0x01.
    lies = 0
    for at in range(len(data) - footer):
        place = footer + at
        if data[place : place + 2] == b"\x9a\x01":
            lying = data[:place] + b"\x9c\x01" + data[place + 2 :]  # 78
            path.write_bytes(lying)
            try:
                count = len(list(read(path, fields=FIELDS)))
            except DataError as error:
                assert error.code == "parquet-damaged"
                lies += 1
            else:
                assert count == 77
    assert lies


def test_d45_nested_values_are_typed_errors_of_the_text_and_pass_elsewhere(tmp_path: Path) -> None:
    nested = [[["deep"]], [[]], None]
    path = write(tmp_path / "a.parquet", pa.table({"text": nested}))
    error = refusal(path)
    assert (error.code, error.where.row, error.where.field) == ("field-not-text", 0, "text")
    healthy = write(tmp_path / "b.parquet", pa.table({"text": ["a", "b", "c"], "more": nested}))
    assert [row["more"] for row in read(healthy, fields=FIELDS)] == nested


def test_d45_schema_nested_too_deep_and_duplicate_columns(tmp_path: Path) -> None:
    kind = pa.string()
    for _ in range(70):
        kind = pa.list_(kind)
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(path, pa.schema([("text", pa.string()), ("deep", kind)])):
        pass
    error = refusal(path)
    assert (error.code, error.where.field) == ("schema-too-deep", "deep")
    twice = write(tmp_path / "b.parquet", pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]))
    assert refusal(twice).code == "column-duplicate"


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_d45_string_that_is_not_utf8_costs_its_row(tmp_path: Path, form: str) -> None:
    values = pa.array([b"good", b"na\xefve", b"good too"]).view(pa.string())
    path = write(tmp_path / f"a.{form}", pa.table({"text": values}))
    stream: RowStream
    try:
        stream = read(path, fields=FIELDS, on_error="skip")
        texts = [row["text"] for row in stream]
    except DataError as error:  # Arrow's own check refuses the whole batch
        assert (form, error.code) == ("feather", "arrow-damaged")
    else:
        assert texts == ["good", "good too"]
        assert [(error.code, error.where.row) for error in stream.errors] == [("encoding-invalid", 1)]


def test_d45_name_and_content_must_agree(tmp_path: Path) -> None:
    data = write(tmp_path / "a.parquet", pa.table({"text": ["a"]})).read_bytes()
    wrong = tmp_path / "a.csv"
    wrong.write_bytes(data)
    error = refusal(wrong)
    assert (error.code, ".parquet" in error.fix) == ("format-mismatch", True)
    text = tmp_path / "b.parquet"
    text.write_text('{"text": "a"}\n')
    assert refusal(text).code == "parquet-damaged"
