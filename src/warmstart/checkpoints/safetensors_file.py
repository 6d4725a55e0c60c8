"""The header of a safetensors file, checked before a single tensor is used.

The format: 8 bytes little-endian header length, a JSON header (name -> dtype, shape, data_offsets), then the tensors'
bytes, which must tile the rest of the file exactly. The checks go beyond the library's: duplicate names are refused,
names are plain, and a file of another kind is named for what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warmstart.checkpoints.files import parse_json
from warmstart.errors import CheckpointError, Where

HEADER_LIMIT = 25 << 20  # bytes; the hub's own limit for a safetensors header
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    "F4": 4,
}
# The unsigned view and the exponent bits of each float type: all exponent bits set means NaN or infinity.
_EXPONENTS = {"F64": ("<u8", 0x7FF0 << 48), "F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}
_NAME = re.compile(r"[A-Za-z0-9._-]{1,256}")
_SIGNATURES = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "run `git lfs pull`, or download it"),
    (b"\x1f\x8b", "gzip data", "unpack it first"),
    (b"PK\x03\x04", "a zip archive (often a pickled PyTorch checkpoint)", "convert"),
    (b"GGUF", "a GGUF file", "use a safetensors version of the model"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05][^\x00]", re.DOTALL)
CONVERT = (
    "pickles can run code, so they are never read here. Where you trust the file, load it with plain transformers in "
    "an environment of its own and write it back: "
    "AutoModel.from_pretrained(folder, use_safetensors=False).save_pretrained(new_folder)"
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor as its header describes it. `start` and `stop` are byte offsets from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return _product(self.shape)


def read_header(path: Path) -> Mapping[str, TensorInfo]:
    """The tensors of one safetensors file, in the order of their bytes. Reads the header only.

    Raises CheckpointError `safetensors-empty`, `safetensors-wrong-format`, `safetensors-truncated`,
    `safetensors-header-size`, `safetensors-name`, `safetensors-dtype`, `safetensors-shape`, `safetensors-offsets`,
    or a JSON error of `files.parse_json`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        _check_kind(path, size, start)
        length = int.from_bytes(start[:8], "little")
        _check_header_length(path, size, length)
        file.seek(8)
        header = file.read(length)
    parsed = parse_json(header.rstrip(b" "), Where(source=str(path), offset=8))
    parsed.pop("__metadata__", None)
    tensors = [(name, _tensor(path, name, entry, 8 + length)) for name, entry in parsed.items()]
    tensors.sort(key=lambda pair: (pair[1].start, pair[1].stop))
    _check_tiling(path, size, 8 + length, tensors)
    return dict(tensors)


def _check_kind(path: Path, size: int, start: bytes) -> None:
    if size == 0:
        raise CheckpointError(
            "safetensors-empty", f"{path.name} is empty", where=str(path), value=0, fix="download the file again"
        )
    if size < 8:
        raise _truncated(path, f"{path.name} has {size} bytes; a safetensors file has at least 8", size)
    # Only a file that cannot be safetensors is sniffed: an honest header length may look like another signature.
    if int.from_bytes(start[:8], "little") <= HEADER_LIMIT and start[8:9] in (b"{", b""):
        return
    for signature, kind, fix in _SIGNATURES:
        if start.startswith(signature):
            raise _wrong_format(path, kind, CONVERT if fix == "convert" else fix, start)
    if _PICKLE.match(start):
        raise _wrong_format(path, "a Python pickle", CONVERT, start)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        raise _wrong_format(
            path, "an HTML page, probably an error page saved by a download", "download it again", start
        )
    if text.startswith((b"<?xml", b"<error")):
        raise _wrong_format(path, "an XML page, probably an error of a storage server", "download it again", start)
    if text.startswith(b'{"'):
        raise _wrong_format(path, "JSON text", "download the file again", start)


def _wrong_format(path: Path, kind: str, fix: str, start: bytes) -> CheckpointError:
    return CheckpointError(
        "safetensors-wrong-format",
        f"{path.name} is not a safetensors file: it is {kind}",
        where=Where(source=str(path), offset=0),
        value=start[:40],
        fix=fix,
    )


def _truncated(path: Path, what: str, offset: int) -> CheckpointError:
    return CheckpointError(
        "safetensors-truncated", what, where=Where(source=str(path), offset=offset), fix="download the file again"
    )


def _check_header_length(path: Path, size: int, length: int) -> None:
    if length > HEADER_LIMIT or length < 2:
        raise CheckpointError(
            "safetensors-header-size",
            f"the header says it is {length} bytes long; 2 to {HEADER_LIMIT} are possible",
            where=Where(source=str(path), offset=0),
            value=length,
            fix="the file is damaged or of another kind: get it from its publisher again",
        )
    if 8 + length > size:
        raise _truncated(path, f"the header needs {8 + length} bytes, the file has {size}", size)


def _tensor(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    if not _NAME.fullmatch(name):
        raise _bad(path, "safetensors-name", "a tensor's name is not a plain name", name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, "safetensors-offsets", f"the entry of tensor {name!r} is malformed", entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _bad(path, "safetensors-dtype", f"tensor {name!r} has an unknown dtype", dtype)
    if not _is_counts(shape) or len(shape) > 16:
        raise _bad(path, "safetensors-shape", f"tensor {name!r} has an impossible shape", shape)
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad(path, "safetensors-offsets", f"tensor {name!r} has impossible offsets", offsets)
    bits = _product(shape) * _BITS[dtype]  # Python integers do not overflow; a huge product fails the next test
    if bits != 8 * (offsets[1] - offsets[0]):
        got = offsets[1] - offsets[0]
        what = f"tensor {name!r} of {dtype} {tuple(shape)} needs {bits // 8} bytes, its offsets give {got}"
        raise _bad(path, "safetensors-shape", what, shape)
    return TensorInfo(dtype, tuple(shape), path, base + offsets[0], base + offsets[1])


def _is_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def _product(shape: tuple[int, ...] | list[int]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _bad(path: Path, code: str, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        code,
        what,
        where=Where(source=str(path), offset=8),
        value=value,
        fix="the file is damaged or was made to do harm: get it from its publisher again",
    )


def _check_tiling(path: Path, size: int, base: int, tensors: list[tuple[str, TensorInfo]]) -> None:
    position = base
    for name, tensor in tensors:
        if tensor.start != position:
            kind = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            value = [tensor.start - base, tensor.stop - base]
            raise _bad(path, "safetensors-offsets", f"tensor {name!r} {kind}", value)
        position = tensor.stop
    if position > size:
        raise _truncated(path, f"the tensors need {position} bytes, the file has {size}", size)
    if position < size:
        what = f"{size - position} bytes follow the last tensor"
        raise _bad(path, "safetensors-offsets", what, position)


def nonfinite_tensors(tensors: Mapping[str, TensorInfo], *, chunk: int = 4 << 20) -> Iterator[str]:
    """Names of floating-point tensors that hold a NaN or an infinity. Every byte is read once, in chunks of `chunk`."""
    by_file: dict[Path, list[tuple[str, TensorInfo]]] = {}
    for name, tensor in tensors.items():
        if tensor.dtype in _EXPONENTS:
            by_file.setdefault(tensor.file, []).append((name, tensor))
    buffer = bytearray(chunk)
    for path, group in by_file.items():
        with path.open("rb", buffering=0) as file:
            for name, tensor in sorted(group, key=lambda pair: pair[1].start):
                if _has_nonfinite(file, tensor, buffer):
                    yield name


def _has_nonfinite(file: Any, tensor: TensorInfo, buffer: bytearray) -> bool:
    view, mask = _EXPONENTS[tensor.dtype]
    file.seek(tensor.start)
    left = tensor.stop - tensor.start
    while left:
        got = file.readinto(memoryview(buffer)[: min(left, len(buffer))])
        if not got:  # cut since its header was read; loading will say so
            return False
        whole = got - got % np.dtype(view).itemsize
        file.seek(whole - got, 1)
        bits = np.frombuffer(buffer, dtype=view, count=whole // np.dtype(view).itemsize)
        if ((bits & bits.dtype.type(mask)) == bits.dtype.type(mask)).any():
            return True
        left -= whole
    return False
