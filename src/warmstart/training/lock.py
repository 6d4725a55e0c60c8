"""One training at a time in a run directory: a lock of the operating system, beside the name of its owner.

The system lets go of the lock when its owner ends, in whatever way; so a lock is never stale. Only the processes that
collate batches may outlive a killed run, by some seconds, and hold it: these are waited for.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from warmstart.errors import UsageError, WarmstartError

log = logging.getLogger("warmstart")

LOCK, OWNER = ".lock", ".owner.json"
# A worker of a DataLoader looks every 5 s whether its owner lives.
WORKERS_LEAVE_SECONDS = 15.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory `folder`, which exists, while the block lasts.

    Raises UsageError "run-locked", which names the process that holds it, its host and since when; WarmstartError
    "run-not-lockable" where the system gives no lock or takes no name of its owner.
    """
    lock = filelock.FileLock(folder / LOCK)
    with _reported(folder):
        _acquire(lock, folder)
    try:
        with _reported(folder):
            me = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
            (folder / OWNER).write_text(json.dumps(me) + "\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: filelock.BaseFileLock, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # filelock's, of what is logged below
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            owner = _owner(folder)
            if not _is_dead(owner):
                raise _refused(folder, owner) from None
            log.info("waiting for what is left of process %s, which was killed in %s", owner["pid"], folder)
            try:
                lock.acquire(timeout=WORKERS_LEAVE_SECONDS)
            except filelock.Timeout:
                raise _refused(folder, owner) from None
    if isinstance(lock, filelock.SoftFileLock):
        log.warning("the file system of %s knows no locks; a file that says who is there stands in for one", folder)


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, NotImplementedError) as error:  # the latter from a filelock that has nothing to stand in
        reason = error.strerror if isinstance(error, OSError) else None
        raise WarmstartError(
            "run-not-lockable",
            f"the run directory cannot be locked: {reason or error}",
            where=str(folder),
            fix="check free space and permissions there; on a network file system, choose an -o on a local disk",
        ) from None


def _owner(folder: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it has the lock, and is just writing this
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(owner: Mapping[str, Any]) -> bool:
    """Is it certain that the owner no longer runs: only this host can tell of its own processes."""
    pid = owner.get("pid")
    if os.name != "posix" or owner.get("host") != platform.node() or not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _refused(folder: Path, owner: Mapping[str, Any]) -> UsageError:
    who = f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'an unknown host')}"
    return UsageError(
        "run-locked",
        f"another training holds this run directory: {who}, since {owner.get('since', 'just now')}",
        where=str(folder),
        value=owner.get("pid"),
        fix="wait for it or stop it, then run this again; or choose another -o",
    )
