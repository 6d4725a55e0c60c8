"""Files and folders that appear whole and stay: written beside their place, flushed, and renamed into it.

While something is written, its hidden name is held by a lock of the operating system, which ends with its process, in
whatever way that ends. So the next write to the same place can tell what a kill left from what another process is just
writing, and removes it. Where there is no such lock (Windows, some network file systems), nothing is taken for left.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

# What a file system answers that has no such operation, and never one that failed.
_UNKNOWN = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL})


def write_file(target: Path, content: bytes) -> None:
    """Write a file whole or not at all, and its name too, to the disk; the one before stays until then.

    Raises OSError; nothing new is left behind then.

    >>> write_file(Path("a.json"), b"{}")  # doctest: +SKIP
    """
    remove_left(target)
    with held(target, Path.touch) as temporary:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        flush(target.parent)


@contextmanager
def held(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden file or folder beside `target`, made by `make` (`Path.touch`, `Path.mkdir`) and held while the block
    lasts. What then still has its name is removed."""
    path, lock = make_held(target, make)
    try:
        yield path
    finally:
        remove(path)
        let_go(lock)


def make_held(target: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    """As `held`, and its lock, which lasts until `let_go` or the process's end; None where there is none."""
    while True:
        path = hidden_name(target)
        make(path)
        lock = _locked(path, wait=True)
        if path.exists():
            return path, lock
        let_go(lock)  # it was not held yet, and another process took it for left


def let_go(lock: int | None) -> None:
    """End what `make_held` began."""
    if lock is not None:
        os.close(lock)


@contextmanager
def temporary_folder(name: str) -> Iterator[Path]:
    """A folder for this user alone among the system's temporary ones; what a kill left under `name` goes first."""
    target = Path(tempfile.gettempdir()) / name
    remove_left(target)
    with held(target, make_private) as folder:
        yield folder


def make_private(folder: Path) -> None:
    """Make a folder that only this user can look into."""
    folder.mkdir(mode=0o700)


def hidden_name(target: Path) -> Path:
    """A new name beside `target`, which `remove_left(target)` knows."""
    return target.with_name(f"{_prefix(target)}{uuid.uuid4().hex[:12]}")


def remove_left(target: Path) -> None:
    """Remove what killed writers to `target` left beside it. What is being written is held, and stays."""
    left = re.compile(re.escape(_prefix(target)) + "[0-9a-f]{12}")
    with suppress(OSError):  # a folder that may be written, and not listed
        for path in [path for path in target.parent.iterdir() if left.fullmatch(path.name)]:
            lock = _locked(path, wait=False)
            if lock is not None:
                remove(path)
                let_go(lock)


def _prefix(target: Path) -> str:
    """Of hidden names beside `target`; cut, since a name has at most 255 bytes."""
    return f".{os.fsencode(target.name)[:200].decode(errors='ignore')}.tmp-"


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Put a file's content, or the names in a folder, on the disk: what was not flushed, a power cut may take back."""
    if path.is_dir() and os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and is_unsupported(error)):
            raise
    finally:
        os.close(descriptor)


def is_unsupported(error: OSError) -> bool:
    """Does the file system have no such operation, rather than one that failed."""
    return error.errno in _UNKNOWN


def _locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds what is at `path`; None where it is gone, another holds it, or nothing can be held."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
