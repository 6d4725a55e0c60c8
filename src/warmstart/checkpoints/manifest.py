"""MANIFEST.json: the size and SHA-256 of every file of a folder that was committed; written last, checked on load."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from warmstart.checkpoints.files import find_file, read_json
from warmstart.errors import CheckpointError, Where

logger = logging.getLogger("warmstart")

NAME = "MANIFEST.json"
_FILE = re.compile(r"[^/\\\x00]{1,255}(/[^/\\\x00]{1,255}){0,4}")


def write_manifest(folder: Path, known: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write MANIFEST.json over every regular file below `folder`, in the order of their names. Returns its path.

    `known`: the SHA-256 of files, by relative name, that were hashed while they were written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / NAME:
            name = path.relative_to(folder).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": known.get(name) or sha256(path)}
    target = folder / NAME
    target.write_text(json.dumps({"format": 1, "files": files}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def check_manifest(folder: Path) -> tuple[str, ...]:
    """Compare a folder with its MANIFEST.json; without one, nothing is checked.

    A changed README is somebody's good right and gives a finding; every other difference is an error.
    Raises CheckpointError `manifest-invalid`, `manifest-file-missing` or `manifest-mismatch`.
    """
    path = find_file(folder, NAME)
    if path is None:
        return ()
    files = read_json(path).get("files")
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise CheckpointError(
            "manifest-invalid",
            "the manifest does not list files with their size and sha256",
            where=Where(source=str(path), field="files"),
            fix=f"get the checkpoint again, or delete {NAME} if you changed the files yourself",
        )
    findings = [finding for name, entry in files.items() if (finding := _check_file(folder, name, entry))]
    for finding in findings:
        logger.info("%s: %s", folder.name, finding)
    return tuple(findings)


def _is_entry(name: str, entry: Any) -> bool:
    return (
        _FILE.fullmatch(name) is not None
        and not any(part in (".", "..") for part in name.split("/"))
        and isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
    )


def _check_file(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = find_file(folder, name)
    if path is None:
        raise _mismatch(
            "manifest-file-missing", f"{name} is in the manifest but not in the folder", folder / name, name
        )
    size = path.stat().st_size
    if size == entry["size"] and sha256(path) == entry["sha256"]:
        return None
    if name.endswith(".md"):
        return f"{name} was changed after it was saved"
    what = f"{name} is not the file that was saved"
    value = f"{size} bytes, {entry['size']} expected" if size != entry["size"] else "same size, another sha256"
    raise _mismatch("manifest-mismatch", what, path, value)


def _mismatch(code: str, what: str, path: Path, value: object) -> CheckpointError:
    return CheckpointError(
        code,
        what,
        where=str(path),
        value=value,
        fix=f"copy the checkpoint again; if you changed the file on purpose, delete {NAME}",
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
