"""Reading one file of a checkpoint folder. Nothing here trusts a file to be what its name says.

A file must be a regular file, inside its folder (a link of the hub cache may lead to that cache's blobs), of bounded
size. A FIFO or a device is refused before it is opened, so nothing can hang.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from warmstart.errors import CheckpointError, Where

JSON_LIMIT = 8 << 20  # bytes; the largest honest config or index is far below
MAX_DEPTH = 64  # nesting of objects and lists


def find_file(folder: Path, name: str) -> Path | None:
    """The regular file `name` in `folder`, or None when there is no such entry.

    Raises CheckpointError `symlink-dangling`, `symlink-outside`, `file-not-regular` or `file-unreadable`.
    """
    path = folder / name
    try:
        entry = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    if stat.S_ISLNK(entry.st_mode) or "/" in name:  # a folder on the way may be a link, too
        _check_link(folder, path)
        try:
            entry = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from None
    if not stat.S_ISREG(entry.st_mode):
        raise CheckpointError(
            "file-not-regular",
            f"{name} is {_kind(entry.st_mode)}, not a file",
            where=str(path),
            fix="remove it, or put the real file in its place",
        )
    if not os.access(path, os.R_OK):
        raise _unreadable(path, PermissionError(13, "Permission denied"))
    return path


def _check_link(folder: Path, path: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        raise CheckpointError(
            "symlink-dangling",
            f"{path.name} is a symbolic link that leads nowhere",
            where=str(path),
            value=str(path.readlink()) if path.is_symlink() else None,
            fix="download the checkpoint again, or put the real file in place of the link",
        ) from None
    real = folder.resolve()
    allowed = [real]
    if real.parent.name == "snapshots":  # the hub cache: <repo>/snapshots/<commit>/<file> -> <repo>/blobs/<hash>
        allowed.append(real.parent.parent / "blobs")
    if not any(target.is_relative_to(root) for root in allowed):
        raise CheckpointError(
            "symlink-outside",
            f"{path.relative_to(folder)} leads out of the checkpoint folder by a symbolic link",
            where=str(path),
            value=str(target),
            fix="copy the file into the folder if you trust it",
        )


def _kind(mode: int) -> str:
    for test, name in (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    ):
        if test(mode):
            return name
    return "something else"


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "file-unreadable",
        f"{path.name} cannot be read: {error.strerror or error}",
        where=str(path),
        fix=f"give yourself read permission (chmod u+r {path.name}), or copy the checkpoint to a folder of your own",
    )


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole file, if it is at most `limit` bytes. Raises CheckpointError `file-too-large` or `file-unreadable`."""
    try:
        # O_NONBLOCK: should the path have become a FIFO since it was looked at, the open still returns at once.
        descriptor = os.open(path, os.O_RDONLY | _nonblock())
        with os.fdopen(descriptor, "rb") as file:
            check_size(path, limit)
            return file.read(min(os.fstat(file.fileno()).st_size, limit))
    except OSError as error:
        raise _unreadable(path, error) from None


def check_size(path: Path, limit: int) -> None:
    """Raises CheckpointError `file-too-large` for a file of more than `limit` bytes."""
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(
            "file-too-large",
            f"{path.name} is {size / 1e6:,.0f} MB; at most {limit / 1e6:,.0f} MB is read",
            where=str(path),
            value=size,
            fix="this is not a file of an ordinary checkpoint: get the checkpoint from its publisher again",
        )


def _nonblock() -> int:
    return os.O_NONBLOCK if os.name == "posix" else 0


def read_json(path: Path, limit: int = JSON_LIMIT) -> dict[str, Any]:
    """The file as a JSON object, with duplicate keys, deep nesting and non-objects refused.

    Raises CheckpointError `json-invalid`, `json-too-deep`, `json-duplicate-key`, `file-too-large`, `file-unreadable`.
    """
    return parse_json(read_bytes(path, limit), Where(source=str(path)))


def parse_json(data: bytes, where: Where) -> dict[str, Any]:
    """A JSON object from bytes; see `read_json`. Time and memory are linear in the bytes."""
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique(where))
    except RecursionError:
        raise _too_deep(where) from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        offset = error.pos if isinstance(error, json.JSONDecodeError) else None
        raise CheckpointError(
            "json-invalid",
            f"not valid JSON: {error.msg if isinstance(error, json.JSONDecodeError) else error}",
            where=Where(source=where.source, offset=offset),
            value=data[:60],
            fix="the file is damaged or of another kind: get the checkpoint again",
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            "json-invalid",
            f"expected a JSON object, found {type(value).__name__}",
            where=where,
            value=data[:60],
            fix="the file is damaged or of another kind: get the checkpoint again",
        )
    _check_depth(value, where)
    return value


def _check_depth(value: object, where: Where) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        inside: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inside += [part for part in item.values() if isinstance(part, dict | list)]
            elif isinstance(item, list):
                inside += [part for part in item if isinstance(part, dict | list)]
        if not inside:
            return
        level = inside
    raise _too_deep(where)


def _too_deep(where: Where) -> CheckpointError:
    return CheckpointError(
        "json-too-deep",
        f"the JSON is nested more than {MAX_DEPTH} levels deep",
        where=where,
        fix="no honest checkpoint needs this: do not use it unless you know its author",
    )


def _unique(where: Where) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(
                "json-duplicate-key",
                "a key stands twice in one JSON object, so readers may disagree on its value",
                where=where,
                value=key,
                fix="keep one of the two, or get the checkpoint from its publisher again",
            )
        return result

    return build
