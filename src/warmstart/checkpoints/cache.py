"""Where fetched things are kept: `$WARMSTART_CACHE`, else `$XDG_CACHE_HOME/warmstart`, else `~/.cache/warmstart`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import filelock

from warmstart.checkpoints.commit import commit_folder
from warmstart.errors import CheckpointError


def cache_folder() -> Path:
    """The cache's folder, absolute; it need not exist yet. Read from the environment at each call."""
    if own := os.environ.get("WARMSTART_CACHE"):
        return Path(own).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser().absolute() / "warmstart"
    return _home() / ".cache" / "warmstart"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise CheckpointError(
            "cache-unknown",
            "there is no home folder to keep the cache in",
            fix="set WARMSTART_CACHE to a folder you may write to",
        ) from None


def fill_once(target: Path, write: Callable[[Path], None]) -> Path:
    """The cache entry `target`, made by `write` (into a temporary folder, then renamed) if it is not there yet.

    Of several processes that ask at once, one fills and the others wait. Raises what `write` raises, and
    CheckpointError `save-failed` or `cache-unwritable`.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise CheckpointError(
            "cache-unwritable",
            f"the cache cannot be written: {error.strerror or error}",
            where=str(target.parent),
            fix="set WARMSTART_CACHE to a folder you may write to",
        ) from error
    try:
        return target if target.is_dir() else commit_folder(target, write)
    finally:
        lock.release()
