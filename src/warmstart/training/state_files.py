"""State dicts on disk without pickle: tensors in one safetensors file, everything else in JSON beside it.

An optimizer's or scheduler's `state_dict()` is dicts, lists, tuples, numbers, texts and tensors. `pack` takes such a
tree apart into JSON, in which each tensor is a name, and the tensors by these names; `unpack` puts it together again.
Floats keep every bit: JSON holds their shortest text that reads back as the same number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from warmstart.errors import CheckpointError

# The types of a safetensors header (https://huggingface.co/docs/safetensors, "Format").
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.complex64: "C64",
}  # fmt: skip
# What says of a file that it is not there; any other OSError says nothing of it.
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def pack(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """JSON-able values for `tree`, and its tensors by the names that stand there for them.

    Raises TypeError for a value that is none of None, bool, int, float, str, list, tuple, dict and dense tensor.

    >>> pack({0: {"step": torch.tensor(2.0)}, "betas": (0.9, 0.999)})
    ({'$items': [[0, {'step': {'$tensor': '0.step'}}], ['betas', {'$tuple': [0.9, 0.999]}]]}, {'0.step': tensor(2.)})
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            if value.dtype not in _DTYPES or value.layout is not torch.strided:
                raise TypeError(
                    f"{path or 'the state'} is a tensor of {value.dtype}, {value.layout}, which no file holds"
                )
            name = path
            while name in tensors:  # {"a": {"b": …}} and {"a.b": …} have one path
                name += "'"
            tensors[name] = value
            return {"$tensor": name}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, list | tuple):
            items = [walk(item, f"{path}.{i}" if path else str(i)) for i, item in enumerate(value)]
            return {"$tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str | int | float)]:
                raise TypeError(f"{path or 'the state'} has a key of type {type(odd[0]).__name__}")
            entries = {key: walk(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
            plain = all(isinstance(key, str) and not key.startswith("$") for key in entries)
            return entries if plain else {"$items": [[key, item] for key, item in entries.items()]}
        raise TypeError(f"{path or 'the state'} is of type {type(value).__name__}, which is no plain value")

    return walk(tree, ""), tensors


def unpack(values: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `pack`. Raises KeyError for a tensor that is not there."""
    if isinstance(values, list):
        return [unpack(item, tensors) for item in values]
    if not isinstance(values, dict):
        return values
    match values:
        case {"$tensor": name}:
            return tensors[name]
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(unpack(item, tensors) for item in items)
        case {"$items": items}:
            return {key: unpack(item, tensors) for key, item in items}
    return {key: unpack(item, tensors) for key, item in values.items()}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write tensors, in their order, as a safetensors file; returns the file's SHA-256.

    Hashed while it is written, in place of a second reading, and without a copy of what lies in memory already: the
    library's own writer takes twice as long for the 180 MB of a small model's AdamW.
    """
    header: dict[str, Any] = {}
    pieces: list[memoryview] = []
    end = 0
    for name, tensor in tensors.items():
        data = tensor.detach().to("cpu").contiguous()
        size = data.numel() * data.element_size()
        offsets = [end, end + size]
        header[name] = {"dtype": _DTYPES[data.dtype], "shape": list(data.shape), "data_offsets": offsets}
        pieces.append(memoryview(data.reshape(-1).view(torch.uint8).numpy()))
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for piece in (memoryview(len(text).to_bytes(8, "little") + text), *pieces):
            digest.update(piece)
            while piece:  # an unbuffered write may take only a part
                piece = piece[file.write(piece) :]
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, each in memory of its own.

    Raises CheckpointError `state-unreadable` for a file that is no such file or is not there; OSError, MemoryError and
    torch's RuntimeError for one that cannot be read now.
    """
    try:
        path.open("rb").close()  # of any file that it cannot open, safetensors says that it is not there
        with safe_open(str(path), framework="pt") as file:
            # A view of the mapped file lies where the file says; memory of its own is aligned as torch aligns it.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 – not a dict
    except (*_MISSING, SafetensorError) as error:
        raise _unreadable(path, str(error)) from None


def read_values(path: Path) -> Any:
    """What a JSON file of ours holds. Raises as `read_tensors` does."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (*_MISSING, ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None


def _unreadable(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        "state-unreadable",
        f"the saved state of a run cannot be read: {why}",
        where=str(path),
        fix="remove the folder that holds it; the run then goes on from an earlier one, or from its start",
    )
