"""Where rows come from: the one shape that files and objects in memory are brought into before columns are matched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from warmstart.errors import DataError
from warmstart.rows.row import Row


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a reader guessed on the way, as a sentence; it travels between the rows."""

    text: str


# A reader yields a bad row as its error, for the policy of the caller to raise or to count. An error that ends the
# whole source (a truncated file, a changed one) is raised.
Raw = Row | DataError | Note


@dataclass(frozen=True, slots=True)
class Source:
    """Rows as they lie in a file or object, with their own column names."""

    name: str  # as errors show it: the path as given, "stdin", or what kind of object it is
    open: Callable[[], Iterator[Raw]]
    once: bool = False  # a pipe or a generator: gone when read
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # column -> names of its integer ids
    said: tuple[str, ...] = ()  # what was guessed to open it


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells that a file is still the one it was."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Raises `OSError` where the file is gone."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(path: Path, name: str, expected: Fingerprint) -> None:
    """Raises `DataError` "file-changed" if the file was written to, truncated, replaced or removed since."""
    try:
        found = Fingerprint.of(path)
    except OSError:
        found = None
    if found == expected:
        return
    if found is None:
        what = "the file was removed while it was being read"
    elif found.inode != expected.inode:
        what = "the file was replaced by another while it was being read"
    elif found.size != expected.size:
        what = f"the file {'grew' if found.size > expected.size else 'shrank'} while it was being read"
    else:
        what = "the file was written to while it was being read"
    raise DataError(
        "file-changed",
        what,
        where=name,
        value=None if found is None else f"{found.size} bytes, {expected.size} before",
        fix="let the writer finish, then read again from the start",
    )


def unreadable(name: str, error: OSError | ValueError) -> DataError:
    """The error of a file that the operating system does not let us read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return DataError(
        "file-unreadable",
        "the file cannot be read",
        where=name,
        value=reason,
        fix="check the path, its permissions and the disk",
    )
