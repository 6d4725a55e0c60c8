"""What a power cut may leave: content and names that were not flushed are lost, together or one without the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.file_faults import Operations, unwatched

Names = dict[str, int]  # path → file, or FOLDER
FOLDER = 0


@dataclass
class _Change:
    """A name that was made, or moved from elsewhere; `file` is what it names."""

    path: str
    source: str | None
    file: int
    flushed: bool = False


@dataclass
class Disk:
    """What is on the disk of the folder `root`, followed through the operations made there; removals are never on it.

    A file's content is on the disk as it was at its last fsync, a name once its folder was flushed after it was given.
    """

    root: str
    each: Callable[[Disk], None]  # called before an operation, where the one before it changed something
    changes: list[_Change] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    now: Names = field(default_factory=dict)
    _changed: bool = False
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def watch(self) -> Operations:
        operations = Operations(lambda count, name: self._follow(*operations.made[-1]))
        return operations

    def _follow(self, name: str, path: str, other: str) -> None:
        with unwatched():
            if self._changed:
                self.each(self)
            self._changed = name in ("fsync", "rename", "replace", "open", "mkdir")
            if path != self.root and not path.startswith(f"{self.root}/"):
                return
            if name in ("rename", "replace"):
                file = self.now[path]
                self._give(_Change(other, path, file))
            elif name in ("open", "write", "mkdir", "chmod") and path not in self.now and self._is_there(path):
                # Files that libraries open by the builtin are seen when their permissions are set.
                self._give(_Change(path, None, FOLDER if name == "mkdir" else next(self._numbers)))
            elif name == "fsync" and self.now.get(path, FOLDER) != FOLDER:
                self.contents[self.now[path]] = Path(path).read_bytes()
            if name == "fsync":
                for change in self.changes:
                    change.flushed |= str(Path(change.path).parent) == path

    def _is_there(self, path: str) -> bool:
        """False where a folder is to be made whose parent is not there yet: that fails, and is tried again later."""
        parent = str(Path(path).parent)
        return parent == self.root or self.now.get(parent) == FOLDER

    def _give(self, change: _Change) -> None:
        self.changes.append(change)
        _apply(self.now, change)

    def left(self) -> Iterator[Names]:
        """The names a cut may leave now: all; without all unflushed ones; without one of them; with one of them."""
        open_ = [change for change in self.changes if not change.flushed]
        for lost in ([], open_, *([each] for each in open_), *([o for o in open_ if o is not each] for each in open_)):
            names: Names = {self.root: FOLDER}
            for change in self.changes:
                if not any(change is each for each in lost) and str(Path(change.path).parent) in names:
                    _apply(names, change)
            yield names

    def state(self, names: Names) -> frozenset[tuple[str, bytes | None]]:
        """Names with what they hold, None for a folder: equal where a cut leaves the same."""
        return frozenset(
            (path, None if file == FOLDER else self.contents.get(file, b"")) for path, file in names.items()
        )

    def write(self, state: frozenset[tuple[str, bytes | None]], folder: Path) -> None:
        """Put what is left into the new folder `folder`, in the place of `root`."""
        for path, content in sorted(state, key=lambda entry: entry[0]):
            place = folder / Path(path).relative_to(self.root)
            if content is None:
                place.mkdir(parents=True)
            else:
                place.write_bytes(content)


def _apply(names: Names, change: _Change) -> None:
    if change.source is None:
        names[change.path] = change.file
    elif change.source in names:
        for path in [path for path in names if path == change.source or path.startswith(f"{change.source}/")]:
            names[change.path + path.removeprefix(change.source)] = names.pop(path)
