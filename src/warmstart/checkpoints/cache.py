"""Where fetched things are kept: `$WARMSTART_CACHE`, else `$XDG_CACHE_HOME/warmstart`, else `~/.cache/warmstart`."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import filelock

from warmstart.checkpoints.commit import commit_folder
from warmstart.durable import make_held, make_private, remove_left
from warmstart.errors import CheckpointError

log = logging.getLogger("warmstart")

_TAKES_NOTHING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT})


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

    Of several processes that ask at once, one fills and the others wait. Where the cache takes nothing (its folder may
    not be written, its disk is full), the entry is made in a temporary folder, which lasts as long as this process;
    that is warned about once an entry. Raises what `write` raises, and CheckpointError `save-failed`, or
    `cache-unwritable` where the cache's place is no folder or no temporary folder takes the entry either.
    """
    if target.is_dir():
        return target
    try:
        return _fill(target, write)
    except (CheckpointError, OSError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        if isinstance(reason, NotADirectoryError | FileExistsError):  # a setting to be mended, and no fault
            raise _unwritable(target, reason) from error
        if reason.errno not in _TAKES_NOTHING:
            raise
    place = _temporary_cache(os.getpid()) / target.parent.name / target.name
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = commit_folder(place, write)
    except (CheckpointError, OSError) as error:
        if isinstance(error, CheckpointError) and error.code != "save-failed":
            raise
        raise _unwritable(target, reason) from error
    log.warning("the cache %s cannot be written (%s): %s is kept until this process ends",
                target.parent, reason.strerror, target.name)  # fmt: skip
    return made


def _fill(target: Path, write: Callable[[Path], None]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(target.with_name(f".{target.name}.lock")):
        return target if target.is_dir() else commit_folder(target, write)


@cache
def _temporary_cache(pid: int) -> Path:
    """The folder of this process for what its cache does not take; removed when the process ends, or after a kill by
    the next process that needs one."""
    place = Path(tempfile.gettempdir()) / "warmstart-cache"
    remove_left(place)
    folder, _ = make_held(place, make_private)  # held as long as the process lives

    def remove() -> None:
        if os.getpid() == pid:  # a fork ends without it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _unwritable(target: Path, reason: OSError) -> CheckpointError:
    return CheckpointError(
        "cache-unwritable",
        f"the cache cannot be written: {reason.strerror or reason}",
        where=str(target.parent),
        fix="set WARMSTART_CACHE to a folder you may write to, on a disk with space",
    )
