"""A graph's file, looked through before a runtime opens it: what leads out of the folder, what may never end.

An ONNX file is read as the protocol buffer it is (field numbers: `onnx.proto` of github.com/onnx/onnx), in place, so
that weights cost nothing; an OpenVINO file is searched as text. Graphs without loops end: those with one are refused,
as no export of ours has any.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from warmstart.checkpoints.files import check_size, read_bytes
from warmstart.errors import CheckpointError, Where

XML_LIMIT = 64 << 20  # bytes; weights are not in it
ONNX_LIMIT = 2 << 30  # bytes; what a protocol buffer can hold
_DEPTH = 16  # graphs within graphs
_LOOPS = ("Loop", "Scan", "TensorIterator")
_LOOP_LAYER = re.compile(rb"""<layer\b[^>]*\btype\s*=\s*["'](Loop|TensorIterator)["']""")

# Field numbers by message; the messages that may hold a tensor or a node, and what they hold.
_MODEL = {7: "graph", 20: "training", 25: "function"}
_INSIDE = {
    "model": _MODEL,
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OP_TYPE, _EXTERNAL_DATA, _DATA_LOCATION = 4, 13, 14


def check_openvino(path: Path) -> None:
    """Raises CheckpointError `graph-unsafe`, `graph-invalid`, `file-too-large` or `file-unreadable`."""
    text = read_bytes(path, XML_LIMIT)
    if b"<net" not in text[:4096]:
        raise _invalid(path, "the file is no OpenVINO graph", 0)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise _unsafe(path, "the graph's file defines entities", "DOCTYPE")
    if loop := _LOOP_LAYER.search(text):
        raise _unsafe(path, "the graph has a loop, which may never end", loop.group(1).decode())


def check_onnx(path: Path) -> None:
    """Raises CheckpointError `graph-unsafe` for data in other files and loops, `graph-invalid`, `file-too-large`."""
    check_size(path, ONNX_LIMIT)
    if path.stat().st_size == 0:
        raise _invalid(path, "the file is empty", 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = _Walk(path, data).message("model", 0, len(data), _DEPTH * 3)
    if "graph" not in found:
        raise _invalid(path, "the file holds no graph", 0)


@dataclass(frozen=True, slots=True)
class _Walk:
    path: Path
    data: mmap.mmap

    def message(self, kind: str, start: int, stop: int, depth: int) -> set[str]:
        """Look through one message and all it holds; which kinds stand directly in it."""
        if depth == 0:
            raise _unsafe(self.path, "the graph's parts lie within each other too deeply", kind)
        found: set[str] = set()
        for number, wire, begin, end in self._fields(start, stop):
            inside = _INSIDE[kind].get(number)
            if inside is not None and wire == 2:
                found.add(inside)
                self.message(inside, begin, end, depth - 1)
            elif kind == "node" and number == _OP_TYPE and self.data[begin:end].decode("latin-1") in _LOOPS:
                raise _unsafe(
                    self.path, "the graph has a loop, which may never end", self.data[begin:end].decode("latin-1")
                )
            elif kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and begin == 1)):
                raise _unsafe(
                    self.path,
                    "a tensor of the graph lies in another file",
                    bytes(self.data[begin:end][:200]) if number == _EXTERNAL_DATA else "data_location",
                )
        return found

    def _fields(self, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, begin, end) of each field; of a varint `begin` is its value."""
        while at < stop:
            start = at
            key, at = self._varint(at, stop)
            number, wire = key >> 3, key & 7
            if wire == 0:
                value, at = self._varint(at, stop)
                yield number, wire, value, value
                continue
            if wire == 2:
                length, at = self._varint(at, stop)
            else:
                length = {1: 8, 5: 4}.get(wire, -1)
            if number == 0 or length < 0 or at + length > stop:
                raise _invalid(self.path, "the file is damaged or no ONNX graph", start)
            yield number, wire, at, at + length
            at += length

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if at >= stop:
                break
            byte = self.data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
        raise _invalid(self.path, "the file is damaged or no ONNX graph", at)


def _unsafe(path: Path, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        "graph-unsafe",
        what,
        where=str(path),
        value=value,
        fix="do not use this file; export the checkpoint again, or get it from somebody you trust",
    )


def _invalid(path: Path, what: str, offset: int) -> CheckpointError:
    return CheckpointError(
        "graph-invalid",
        what,
        where=Where(source=str(path), offset=offset),
        fix="copy the folder again, or export the checkpoint again",
    )
