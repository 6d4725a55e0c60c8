"""Catalogue C29, and its like for graphs of either format: damaged, lying or dangerous exports. Typed errors, soon."""

from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import warmstart as ws
from support.damage import copy_of, refused
from support.exports import edit_record, seal, tiny_export
from warmstart.checkpoints import verify_export
from warmstart.checkpoints.graph_file import check_onnx
from warmstart.errors import CheckpointError, UsageError

FORMATS = ("openvino", "onnx")
FILES = {"openvino": ("model.xml", "model.bin"), "onnx": ("model.onnx",)}


@pytest.fixture(scope="module")
def exports(tiny_root: Path) -> dict[str, Path]:
    """Made before the clock of any test starts."""
    return {format: tiny_export(tiny_root, format) for format in FORMATS}


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(exports: dict[str, Path], tmp_path: Path, format: str) -> Path:
    copy = copy_of(exports[format], tmp_path / "exported")
    assert verify_export(copy).record.format == format  # the healthy twin of every test here
    return copy


@pytest.fixture
def openvino_folder(exports: dict[str, Path], tmp_path: Path) -> Path:
    return copy_of(exports["openvino"], tmp_path / "exported")


@pytest.fixture
def onnx_folder(exports: dict[str, Path], tmp_path: Path) -> Path:
    return copy_of(exports["onnx"], tmp_path / "exported")


# --- data outside of the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../../../../etc/passwd", "/etc/passwd", "model.onnx.data", "a/../../b"])
def test_c29_external_data(onnx_folder: Path, location: str) -> None:
    path = onnx_folder / "model.onnx"
    model = onnx.load(str(path))
    tensor = max(model.graph.initializer, key=lambda tensor: tensor.ByteSize())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    seal(onnx_folder)
    with refused("graph-unsafe", "model.onnx") as caught:
        ws.load(onnx_folder)
    assert location in str(caught.value.value)


@pytest.mark.parametrize("place", ["attribute", "subgraph", "function", "sparse"])
def test_c29_external_data_wherever_a_tensor_may_be(onnx_folder: Path, place: str) -> None:
    path = onnx_folder / "model.onnx"
    model = onnx.load(str(path))
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    if place == "function":
        function = onnx.FunctionProto(name="f", domain="d")
        function.node.add(op_type="Constant").attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
            tensor
        )
        model.functions.append(function)
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        attribute = model.graph.node.add(op_type="If").attribute.add(name="x")
        if place == "attribute":
            attribute.t.CopyFrom(tensor)
        else:
            attribute.g.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    seal(onnx_folder)
    with refused("graph-unsafe", "model.onnx"):
        verify_export(onnx_folder)


def test_c29_entities(openvino_folder: Path) -> None:
    path = openvino_folder / "model.xml"
    text = path.read_text(encoding="utf-8")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    path.write_text(text.replace("<net", f"{bomb}<net", 1), encoding="utf-8")
    seal(openvino_folder)
    with refused("graph-unsafe", "model.xml"):
        ws.load(openvino_folder)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "export.json", "config.json", "tokenizer.json"])
def test_c29_links_that_lead_out(openvino_folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (openvino_folder / name).rename(outside)
    (openvino_folder / name).symlink_to(outside)
    with refused("symlink-outside", name):
        ws.load(openvino_folder)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "export.json", "MANIFEST.json"])
def test_c29_fifo_does_not_hang(openvino_folder: Path, name: str) -> None:
    (openvino_folder / name).unlink()
    os.mkfifo(openvino_folder / name)
    with refused("file-not-regular", name, seconds=1):
        ws.load(openvino_folder)


# --- what may never end -------------------------------------------------------------------------------------------


def test_c29_loops_of_onnx(onnx_folder: Path) -> None:
    path = onnx_folder / "model.onnx"
    model = onnx.load(str(path))
    model.graph.node.add(op_type="Loop", name="forever")
    path.write_bytes(model.SerializeToString())
    seal(onnx_folder)
    with refused("graph-unsafe", "model.onnx") as caught:
        ws.load(onnx_folder)
    assert caught.value.value == "Loop"


def test_c29_loops_of_openvino(openvino_folder: Path) -> None:
    path = openvino_folder / "model.xml"
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r'type="Gelu"', 'type="TensorIterator"', text, count=1), encoding="utf-8")
    seal(openvino_folder)
    with refused("graph-unsafe", "model.xml"):
        ws.load(openvino_folder)


def test_c29_graphs_within_graphs(onnx_folder: Path) -> None:
    inner = b""
    for _ in range(10_000):  # GraphProto{node: NodeProto{attribute: AttributeProto{g: …}}}
        for number in (6, 5, 1):
            inner = bytes([number << 3 | 2]) + _varint(len(inner)) + inner
        if len(inner) > 50_000:
            break
    (onnx_folder / "model.onnx").write_bytes(bytes([7 << 3 | 2]) + _varint(len(inner)) + inner)
    seal(onnx_folder)
    with refused("graph-unsafe", "model.onnx"):
        ws.load(onnx_folder)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


# --- damage -------------------------------------------------------------------------------------------------------


def test_c29_a_changed_byte_is_found_by_the_manifest(folder: Path, format: str) -> None:
    for name in (*FILES[format], "export.json", "config.json", "tokenizer.json"):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        healthy = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            ws.load(folder)
        assert caught.value.code in ("manifest-mismatch", "json-invalid", "export-record-invalid"), caught.value
        assert name in str(caught.value.where)
        path.write_bytes(healthy)
    assert ws.load(folder)("good").tokens > 0


def test_c29_truncated_graphs_whose_manifest_fits(folder: Path, format: str) -> None:
    name = FILES[format][-1]
    content = (folder / name).read_bytes()
    for share in (0, 0.1, 0.5, 0.9, 0.999):
        (folder / name).write_bytes(content[: int(len(content) * share)])
        seal(folder)
        start = time.perf_counter()
        with pytest.raises(CheckpointError) as caught:
            ws.load(folder)
        assert time.perf_counter() - start < 2
        assert caught.value.code in ("graph-invalid", "graph-unusable", "file-unreadable"), caught.value
        assert "model" in str(caught.value.where)
    (folder / name).write_bytes(content)
    seal(folder)
    assert ws.load(folder)("good").tokens > 0


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"<html>404</html>", b"version https://git-lfs", b"PK\x03\x04" * 9, b"\x08\x08"]
)
def test_c29_other_files_in_the_place_of_a_graph(folder: Path, format: str, content: bytes) -> None:
    name = FILES[format][0]
    (folder / name).write_bytes(content)
    seal(folder)
    with refused("graph-invalid", name):
        ws.load(folder)


def test_c29_lengths_that_lie_take_no_memory(onnx_folder: Path) -> None:
    path = onnx_folder / "model.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + _varint(2**62) + b"x" * 100)
    seal(onnx_folder)
    tracemalloc.start()
    with refused("graph-invalid", "model.onnx"):
        ws.load(onnx_folder)
    assert tracemalloc.get_traced_memory()[1] < 64e6
    tracemalloc.stop()


def test_c29_offsets_beyond_the_weights(openvino_folder: Path) -> None:
    path = openvino_folder / "model.xml"
    text = path.read_text(encoding="utf-8")
    largest = max(re.findall(r'offset="(\d+)"', text), key=int)
    path.write_text(text.replace(f'offset="{largest}"', f'offset="{2**40}"'), encoding="utf-8")
    seal(openvino_folder)
    with refused("graph-unusable", "model.xml"):
        ws.load(openvino_folder)


@pytest.mark.parametrize("name", ["model.bin", "model.xml", "config.json", "tokenizer.json"])
def test_c29_a_file_is_missing(openvino_folder: Path, name: str) -> None:
    (openvino_folder / name).unlink()
    with refused("export-file-missing", "exported") as caught:
        ws.load(openvino_folder)
    assert caught.value.value == name


def test_c29_no_manifest_no_graph(folder: Path) -> None:
    (folder / "MANIFEST.json").unlink()
    with refused("export-manifest-missing", "MANIFEST.json"):
        ws.load(folder)


def test_c29_a_manifest_that_says_nothing_of_the_graph(folder: Path, format: str) -> None:
    path = folder / "MANIFEST.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    del content["files"][FILES[format][0]]
    path.write_text(json.dumps(content), encoding="utf-8")
    with refused("export-manifest-missing", "MANIFEST.json") as caught:
        ws.load(folder)
    assert caught.value.value == [FILES[format][0]]


# --- records that lie ---------------------------------------------------------------------------------------------

LIES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "format": ("export-record-invalid", lambda r: r.update(format="pickle")),
    "precision": ("export-record-invalid", lambda r: r.update(precision="int3")),
    "record": ("export-record-invalid", lambda r: r.update(record=99)),
    "no-task": ("export-record-invalid", lambda r: r.pop("task")),
    "inputs-twice": ("export-record-invalid", lambda r: r.update(inputs=["input_ids", "input_ids"])),
    "input-name": ("export-record-invalid", lambda r: r.update(inputs=["../x"])),
    "outputs-empty": ("export-record-invalid", lambda r: r.update(outputs=[])),
    "output-shape": ("export-record-invalid", lambda r: r["outputs"][0].update(shape=[None, -2])),
    "limit-text": ("export-record-invalid", lambda r: r["tokenizer"].update(limit="512")),
    "limit-huge": ("export-record-invalid", lambda r: r["tokenizer"].update(limit=1 << 60)),
    "side": ("export-record-invalid", lambda r: r["tokenizer"].update(truncation_side="middle")),
    "options": ("export-record-invalid", lambda r: r.update(options=[])),
    "parity": ("export-record-invalid", lambda r: r.update(parity=None)),
    "packed": ("export-record-invalid", lambda r: r.update(packed="yes")),
    "packed-missing": ("export-record-invalid", lambda r: r.pop("packed")),
    "not-packed": ("export-record-mismatch", lambda r: r.update(packed=False)),
    "packed-before-it-was": ("export-record-mismatch", lambda r: r.update(record=1)),
    "pack-of-the-task": (
        "export-record-mismatch",
        lambda r: r.update(packed=False, inputs=[*r["inputs"], "pack_index", "pack_places"]),
    ),
    "rows": ("export-record-invalid", lambda r: r.update(embedding_rows=True)),
    "fewer-rows": ("tokenizer-vocab-too-large", lambda r: r.update(embedding_rows=5)),
    "labels": ("export-record-mismatch", lambda r: r.update(labels=["POSITIVE", "NEGATIVE"])),
    "three-labels": ("label-count", lambda r: r.update(labels=["a", "b", "c"])),
    "inputs": ("export-record-mismatch", lambda r: r.update(inputs=["input_ids", "pixels"])),
    "outputs": ("export-record-mismatch", lambda r: r["outputs"][0].update(name="embedding")),
    "shape": ("export-record-mismatch", lambda r: r["outputs"][0].update(shape=[None, 2, 2])),
    "option-value": ("record-invalid", lambda r: r.update(options={"stride": "far"})),
}


@pytest.mark.parametrize("lie", LIES)
def test_c29_records_that_lie(openvino_folder: Path, lie: str) -> None:
    code, change = LIES[lie]
    edit_record(openvino_folder, change)
    with refused(code, "exported"):
        ws.load(openvino_folder)


def test_c29_a_record_that_says_packed_of_a_padded_graph(onnx_folder: Path) -> None:
    edit_record(onnx_folder, lambda record: record.update(packed=True))
    with refused("export-record-mismatch", "exported"):
        ws.load(onnx_folder)


def test_c29_a_record_for_a_task_of_another_version(openvino_folder: Path) -> None:
    edit_record(openvino_folder, lambda record: record.update(task="mind-reading"))
    with pytest.raises(UsageError) as caught:
        ws.load(openvino_folder)
    assert caught.value.code == "task-unsupported"


def test_c29_names_of_labels_stay_what_they_are(openvino_folder: Path) -> None:
    config = openvino_folder / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["id2label"]["1"] = "\x1b[31m<script>"
    content["label2id"] = {label: int(i) for i, label in content["id2label"].items()}
    config.write_text(json.dumps(content), encoding="utf-8")
    seal(openvino_folder)
    with refused("export-record-mismatch", "export.json"):
        ws.load(openvino_folder)
    edit_record(openvino_folder, lambda record: record.update(labels=list(content["id2label"].values())))
    assert ws.load(openvino_folder).task.labels[1] == "\x1b[31m<script>"  # type: ignore[attr-defined]


def test_c29_random_damage_is_never_a_crash(onnx_folder: Path) -> None:
    """The walk over a protocol buffer ends in a typed error or in nothing, whatever byte is changed."""
    path = onnx_folder / "model.onnx"
    content = path.read_bytes()
    for i in range(200):
        damaged = bytearray(content)
        at = (i * 7919) % min(len(content), 4000)
        damaged[at : at + 4] = struct.pack("<I", (i * 2654435761) % 2**32)
        path.write_bytes(damaged)
        try:
            check_onnx(path)
        except CheckpointError as error:
            assert error.code in ("graph-invalid", "graph-unsafe")
