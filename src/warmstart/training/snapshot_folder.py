"""A folder of snapshots `step-…`: which there are, which is the newest that verifies, and what becomes of the others.

What a snapshot holds is its reader's business: `snapshots.py` for `ws.train`, `checkpointer.py` for a person's loop.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from warmstart.checkpoints.commit import remove_folder
from warmstart.checkpoints.files import find_file
from warmstart.checkpoints.manifest import NAME as MANIFEST
from warmstart.checkpoints.manifest import check_manifest
from warmstart.durable import is_unsupported
from warmstart.errors import CheckpointError, TrainingError

log = logging.getLogger("warmstart")

T = TypeVar("T")


def snapshot_path(folder: Path, steps: int) -> Path:
    """Where the snapshot stands that was made after so many steps."""
    return folder / f"step-{steps:06d}"


def snapshots(folder: Path) -> list[Path]:
    """The snapshots in `folder`, oldest first, by the number of their step."""
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def check_committed(path: Path) -> None:
    """Compare a snapshot with its manifest. Raises CheckpointError "snapshot-uncommitted" for one without."""
    if find_file(path, MANIFEST) is None:
        raise CheckpointError(
            "snapshot-uncommitted",
            "the snapshot has no manifest, so it was never whole",
            where=str(path),
            fix="remove it; the run then goes on from an earlier one, or from its start",
        )
    check_manifest(path)


def newest(folder: Path, read: Callable[[Path], T]) -> tuple[T | None, list[dict[str, str]]]:
    """What `read` gives for the newest snapshot that is not damaged, and what was set aside to come to it.

    What it refuses by CheckpointError is renamed to `step-….rejected`, with the reason as the file REASON.txt in it,
    and said. Raises TrainingError "snapshot-unread", see `proving_damage`; nothing is renamed then.
    """
    rejected: list[dict[str, str]] = []
    for path in reversed(snapshots(folder)):
        try:
            with proving_damage(path):
                return read(path), rejected
        except CheckpointError as error:
            rejected.append({"name": path.name, "reason": error.what})
            aside = set_aside(path, str(error))
            log.warning("%s is damaged and was set aside as %s: %s", path.name, aside.name, error.what)
    return None, rejected


@contextmanager
def proving_damage(path: Path) -> Iterator[None]:
    """A CheckpointError comes out of a block of this only where it proves that `path` is not what was saved.

    Raises TrainingError "snapshot-unread" where memory, file handles, permissions, a disk or a network kept it from
    being read: it may be whole, and what is newest is known only when it was read.
    """
    try:
        yield
    except (CheckpointError, OSError, MemoryError, RuntimeError) as error:  # RuntimeError: torch, out of memory
        if isinstance(error, CheckpointError) and error.code != "file-unreadable":
            raise
        raise snapshot_unread(path, error) from error


def snapshot_unread(path: Path, error: BaseException) -> TrainingError:
    """The error that ends an attempt at which `error` kept a snapshot from being read or taken over."""
    reason = error.what if isinstance(error, CheckpointError) else str(error) or type(error).__name__
    return TrainingError(
        "snapshot-unread",
        f"{path.name} could not be read, which does not prove it damaged, and its folder is unchanged: {reason}",
        where=str(path),
        fix="run the same again with more free memory, and with access to the folder; "
        "if its disk cannot read it any more, move the folder away",
    )


def set_aside(path: Path, reason: str) -> Path:
    """Rename a folder that is not to be used, and write into it why. Returns its new path."""
    names = (path.with_name(f"{path.name}.rejected{f'-{n}' if n > 1 else ''}") for n in range(1, 10_000))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError as error:
        if not is_unsupported(error):
            raise
        aside = path  # it stays, and without its manifest nobody takes it
        (path / MANIFEST).unlink(missing_ok=True)
    if aside.is_dir():
        (aside / "REASON.txt").write_text(reason + "\n", encoding="utf-8")
    return aside


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` snapshots; 0 removes all."""
    made = snapshots(folder)
    for old in made[: len(made) - keep] if keep < len(made) else []:
        remove_folder(old)
