"""Committing a folder: it appears whole, with its manifest, or not at all.

The protocol: a sibling folder is filled, every file gets the ordinary permissions and is flushed to the disk, the
manifest is written last, the folder is flushed, renamed into place, and the parent folder is flushed. A kill at any
point leaves either no folder of that name or the complete one (ALICE, Pillai et al., OSDI 2014, on why each step); what
it leaves beside it goes with the next commit of that name.

Some network and object file systems rename no folder. There the files are copied to their place, the manifest last:
what has no manifest, or does not agree with it, was never whole, and no reader of ours takes it for more.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from safetensors import SafetensorError

from warmstart.checkpoints.manifest import NAME as MANIFEST
from warmstart.checkpoints.manifest import write_manifest
from warmstart.durable import flush, held, hidden_name, is_unsupported, remove, remove_left
from warmstart.errors import CheckpointError, UsageError


def commit_folder(
    target: Path,
    write: Callable[[Path], None],
    *,
    replace: bool = False,
    known: Mapping[str, str] = MappingProxyType({}),
    needed: int | None = None,
) -> Path:
    """Let `write` fill a temporary sibling folder, then make it `target` in one step. Returns `target`.

    `needed`: how many bytes it will take, if that is known, to be said where the disk is full.
    `known` is read after `write`: the SHA-256 of those files, by relative name, that it hashed while writing them.

    With `replace`, an existing folder is first renamed aside and deleted last: between two renames there is an instant
    in which a kill leaves the old folder under `<name>.old-<id>`, never a mixed one.

    Raises UsageError `target-exists`, CheckpointError `save-failed` (disk full, no permission …); in both cases nothing
    of the new folder stays behind. What `write` raises passes through.

    >>> commit_folder(Path("out"), lambda folder: (folder / "a.txt").write_text("a"))  # doctest: +SKIP
    """
    target = target.absolute()
    if not replace:
        check_free(target)
    with _reported(target, needed):
        make_folder(target.parent)
        remove_left(target)
        with held(target, Path.mkdir) as temporary, _reported(target, needed, temporary):
            write(temporary)
            _flush_tree(temporary, known)
            _rename(temporary, target, replace=replace)
    return target


@contextmanager
def _reported(target: Path, needed: int | None, temporary: Path | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        space = _space(target, temporary, needed) if _is_full(error) else ""
        raise CheckpointError(
            "save-failed",
            f"saving failed: {(error.strerror if isinstance(error, OSError) else None) or error}{space}",
            where=str(target),
            value=error.filename if isinstance(error, OSError) else None,
            fix="free space or give write permission, then save again; nothing that was there before has changed",
        ) from error


def _is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    # safetensors, written in Rust, says it in words only
    return error.errno in full if isinstance(error, OSError) else any(os.strerror(each) in str(error) for each in full)


def _space(target: Path, temporary: Path | None, needed: int | None) -> str:
    """What was written and what is free, in words; asked before what was written is removed."""
    try:
        paths = temporary.rglob("*") if temporary else ()
        written = sum(path.stat().st_size for path in paths if path.is_file())
        free = shutil.disk_usage(target.parent).free
    except OSError:
        return ""
    takes = f"it takes {needed / 1e6:,.1f} MB, " if needed else ""
    return f" ({takes}{written / 1e6:,.1f} MB were written, and {free / 1e6:,.1f} MB are free beside them)"


def check_free(target: Path) -> None:
    """Raises UsageError `target-exists` for a place that is taken; an empty folder is free."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(
            "target-exists",
            "there is already something at the place to save to",
            where=str(target),
            fix="choose another folder, or remove this one",
        )


def remove_folder(folder: Path) -> None:
    """Remove a committed folder so that a kill leaves it whole, or under a name that `sweep` knows."""
    hidden = hidden_name(folder)
    try:
        folder.rename(hidden)
    except OSError as error:
        if not is_unsupported(error):
            raise
        hidden = folder
        (folder / MANIFEST).unlink(missing_ok=True)  # half removed is not whole
    shutil.rmtree(hidden)


def sweep(parent: Path) -> None:
    """Remove what killed commits left in `parent`. Only for who knows that no commit goes on there.

    A folder that was set aside to be replaced, and whose place is empty, is put back.
    """
    for path in parent.iterdir():
        if re.fullmatch(r"\..+\.tmp-[0-9a-f]{12}", path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif aside := re.fullmatch(r"(.+)\.old-[0-9a-f]{12}", path.name):
            target = path.with_name(aside[1])
            if target.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(target)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, their names on the disk; one that exists stays as it is."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        flush(each.parent)


def _flush_tree(folder: Path, known: Mapping[str, str]) -> None:
    mode = folder.stat().st_mode & 0o666  # ours, just made: what the umask leaves. To ask for the umask is to change it
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)  # safetensors writes 0600
            flush(path)
    manifest = write_manifest(folder, known)
    manifest.chmod(mode)
    flush(manifest)
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            flush(path)
    flush(folder)


def _rename(temporary: Path, target: Path, *, replace: bool) -> None:
    aside = target.with_name(f"{target.name[:200]}.old-{uuid.uuid4().hex[:12]}")
    replaced = replace and target.exists()
    if replaced:
        try:
            target.rename(aside)
        except OSError as error:
            if not is_unsupported(error):
                raise
            remove_folder(target)
            replaced = False
    try:
        try:
            temporary.rename(target)
        except OSError as error:
            if not is_unsupported(error):
                raise
            _copy(temporary, target)
        flush(target.parent)  # a rename that may not be on the disk is no commit
    except BaseException:  # an interrupt, too, must not leave the old folder aside
        if not temporary.exists():
            target.rename(temporary)
        if replaced:
            aside.rename(target)
        raise
    remove(aside)  # what stays of it is no failure of the new one; `sweep` tries again


def _copy(temporary: Path, target: Path) -> None:
    """Put a folder in its place where it cannot be renamed: every file, flushed, and the manifest after all others."""
    try:
        for path in sorted(temporary.rglob("*"), key=lambda path: (path.name == MANIFEST, path)):
            place = target / path.relative_to(temporary)
            if path.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, place)
                flush(place)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
