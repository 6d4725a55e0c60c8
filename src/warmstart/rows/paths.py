"""Which file a path means: the file itself, the one data file of a folder, or a split by its name."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from warmstart.errors import DataError, did_you_mean
from warmstart.rows.limits import Limits
from warmstart.rows.source import unreadable

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".conll": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".bio": "conll",
}
_SPLITS = (("train",), ("validation", "valid", "dev", "val"), ("test",))
KNOWN_SUFFIXES = " ".join(_FORMATS)


def format_of(path: Path) -> str:
    """The format by a file's suffix, before a final .gz; the empty string where it names none."""
    name = path.name.lower().removesuffix(".gz")
    return _FORMATS.get(Path(name).suffix, "")


def resolve(path: Path, limits: Limits) -> tuple[Path, tuple[str, ...]]:
    """(file, said): the regular file that a path means, and the guess that led there.

    A folder with exactly one data file means that file. A path that does not exist and has no data suffix, such as
    `data/train`, means the one data file of that name beside it; `validation`, `valid`, `dev` and `val` stand for each
    other where the very name is not there.

    Raises `DataError`: "file-missing", "file-unreadable", "file-not-regular" (a pipe, a device), "folder-empty",
    "folder-ambiguous", "folder-too-large" (more entries than `limits.max_directory_entries`).
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        found = _by_split(path, limits)
    except (OSError, ValueError) as error:  # a symlink loop, no permission, a NUL in the name
        raise unreadable(str(path), error) from None
    else:
        if stat.S_ISREG(mode):
            return path, ()
        if not stat.S_ISDIR(mode):
            raise DataError(
                "file-not-regular",
                "this is a pipe or a device, not a file: it could hang, or never end",
                where=str(path),
                fix="pipe the rows in: - reads standard input",
            )
        found = _only(_data_files(path, limits), path)
    return found, (f"{str(path)!r} is read from {str(found)!r}",)


def _by_split(path: Path, limits: Limits) -> Path:
    if not path.parent.is_dir():
        raise _missing(path, [])
    files = _data_files(path.parent, limits)
    if not format_of(path):
        synonyms = next((names for names in _SPLITS if path.name in names), ())
        for names in ((path.name,), synonyms):
            matching = [file for file in files if file.name.partition(".")[0] in names]
            if matching:
                return _only(matching, path)
    raise _missing(path, files)


def _only(files: Sequence[Path], path: Path) -> Path:
    if len(files) == 1:
        return files[0]
    shown = ", ".join(file.name for file in files[:10]) + (" …" if len(files) > 10 else "")
    if not files:
        raise DataError(
            "folder-empty",
            "there is no data file in this folder",
            where=str(path),
            fix=f"give the path of a file; read are {KNOWN_SUFFIXES}, each also with .gz",
        )
    raise DataError(
        "folder-ambiguous",
        "several data files could be meant",
        where=str(path),
        value=shown,
        fix=f"name the one you mean, such as {files[0]}",
    )


def _data_files(folder: Path, limits: Limits) -> list[Path]:
    """The data files directly in a folder, by name. Looks at no more entries than the limit and enters no folder."""
    try:
        with os.scandir(folder) as entries:
            seen = list(itertools.islice(entries, limits.max_directory_entries + 1))
            files = [Path(entry.path) for entry in seen if format_of(Path(entry.name)) and _is_file(entry)]
    except OSError as error:
        raise unreadable(str(folder), error) from None
    if len(seen) > limits.max_directory_entries:
        raise DataError(
            "folder-too-large",
            f"the folder has more than {limits.max_directory_entries} entries",
            where=str(folder),
            fix="name the file that you mean",
        )
    return sorted(files)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a symlink loop
        return False


def _missing(path: Path, files: Sequence[Path]) -> DataError:
    hint = f"{did_you_mean(path.name, [file.name for file in files])} " if files else ""
    return DataError(
        "file-missing",
        "there is no such file",
        where=str(path),
        fix=f'{hint}Check the path; a text itself goes into a list: ["…"]',
    )
