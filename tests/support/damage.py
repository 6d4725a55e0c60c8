"""Damaging copies of checkpoints, and stating how the damage must be met."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from warmstart.errors import CheckpointError


def copy_of(folder: Path, target: Path) -> Path:
    """A writable copy of a checkpoint folder."""
    return Path(shutil.copytree(folder, target))


def edit_json(path: Path, changes: Mapping[str, Any], *, remove: tuple[str, ...] = ()) -> None:
    """Change keys of a JSON file; `remove` names keys to take out."""
    content = json.loads(path.read_text(encoding="utf-8")) | dict(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in remove}), encoding="utf-8")


def split_safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file, read by hand."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path: Path, header: Mapping[str, Any] | str, data: bytes) -> None:
    """A safetensors file of exactly this header (a mapping, or raw text) and data; nothing is checked."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@contextmanager
def refused(code: str, place: str, *, seconds: float = 2.0) -> Iterator[pytest.ExceptionInfo[CheckpointError]]:
    """The block must raise CheckpointError `code` that names `place`, within `seconds`, with a next step."""
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        yield caught
    assert time.perf_counter() - start < seconds
    assert caught.value.code == code, str(caught.value)
    assert place in str(caught.value.where), str(caught.value)
    assert len(caught.value.fix) > 10
    assert caught.value.exit_code == 4
