"""From what a person writes after `-m` to a folder on this machine."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from warmstart.checkpoints import hub
from warmstart.checkpoints.cache import cache_folder
from warmstart.checkpoints.carriers import starter_encoder
from warmstart.checkpoints.packages import find_in_package
from warmstart.checkpoints.starter import starter
from warmstart.checkpoints.starter_chat import starter_chat
from warmstart.errors import CheckpointError, UsageError, did_you_mean

logger = logging.getLogger("warmstart")

STARTERS = ("starter", "starter-encoder", "starter-chat")
Source = Literal["folder", "run", "hub", "package", "starter"]


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint folder on this machine and where it came from. Nothing in it was looked at yet: see `verify`."""

    folder: Path
    name: str  # as the person wrote it
    revision: str | None  # of a hub checkpoint: what was asked for after `@`
    source: Source


def find(name: str | Path, *, revision: str | None = None) -> Found:
    """Find a checkpoint, fetching it if it is a starter or a hub id that is not cached.

    `name` is, in this order: a folder or run directory on this machine; `pkg:NAME`; a starter name; a hub id `org/name`
    or `name`, optionally with `@revision`. A cached snapshot is used without asking the hub. A hub that does not answer
    costs 3 seconds, then an error lists what there is.

    Raises UsageError `revision-twice`, `revision-without-hub`; CheckpointError `checkpoint-not-found`,
    `checkpoint-is-a-file`, `run-without-model`, and those of `packages.find_in_package`, `hub.fetch_snapshot`,
    `carriers.starter_encoder`, `starter.starter`, `starter_chat.starter_chat`.

    >>> find("starter-encoder").source  # doctest: +SKIP
    'starter'
    """
    text = os.fspath(name)
    if (local := _find_local(text)) is not None:
        _refuse_revision(text, revision)
        return local
    if isinstance(name, Path) or _is_pathlike(text):
        raise CheckpointError(
            "checkpoint-not-found", "there is no such folder", where=text, fix=_list_neighbours(Path(text))
        )
    if text.startswith("pkg:"):
        _refuse_revision(text, revision)
        return Found(find_in_package(text.removeprefix("pkg:")), text, None, "package")
    if text in STARTERS:
        _refuse_revision(text, revision)
        fetch = {"starter": starter, "starter-encoder": starter_encoder, "starter-chat": starter_chat}[text]
        return Found(fetch(cache_folder()), text, None, "starter")
    return _find_on_hub(text, revision)


def cached_names() -> tuple[str, ...]:
    """Every name that works without a network: the starters (fetched or shipped) and the hub cache."""
    return (*STARTERS, *hub.cached_names())


def _find_local(text: str) -> Found | None:
    if not text:  # an empty path would be the current folder
        return None
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            return _local_folder(path, text)
        is_file = path.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, with a NUL, or of an unknown user: no path
        return None
    if is_file:
        raise CheckpointError(
            "checkpoint-is-a-file",
            "a checkpoint is a folder, this is a file",
            where=text,
            fix=f"give its folder: {path.parent}",
        )
    return None


def _local_folder(path: Path, text: str) -> Found:
    if not (path / "config.json").exists() and (path / "config.toml").is_file():
        if not (path / "model").is_dir():
            raise CheckpointError(
                "run-without-model",
                "this run directory has no model: its training did not finish",
                where=text,
                fix="finish the run, or give one of its checkpoints/ folders",
            )
        return Found(path / "model", text, None, "run")
    if text in STARTERS or ("/" in text and hub.is_hub_name(text)):
        logger.info("%s is a folder here; it wins over the checkpoint of that name", text)
    return Found(path, text, None, "folder")


def _is_pathlike(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or text.endswith(("/", ".safetensors")) or "\\" in text


def _list_neighbours(path: Path) -> str:
    try:
        names = [entry.name for entry in path.absolute().parent.iterdir() if entry.is_dir()]
    except OSError:
        return f"its parent folder does not exist either: {path.absolute().parent}"
    return did_you_mean(path.name, names)[:300] if names else "its parent folder is empty"


def _refuse_revision(text: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            "revision-without-hub",
            "only a hub checkpoint has revisions",
            where=text,
            value=revision,
            fix="leave the revision out",
        )


def _find_on_hub(text: str, revision: str | None) -> Found:
    name, at, after = text.partition("@")
    if at and revision is not None and revision != after:
        raise UsageError(
            "revision-twice", "two revisions are asked for", value=(after, revision), fix="give one of them"
        )
    revision = after if at else revision
    known = cached_names()
    if not hub.is_hub_name(name) or (revision is not None and not hub.is_revision(revision)):
        raise CheckpointError(
            "checkpoint-not-found",
            "this is neither a folder here nor a possible name of a checkpoint",
            value=text,
            fix=f"give a folder, a hub id org/name[@revision], pkg:NAME, or a starter; {did_you_mean(name, known)}",
        )
    if name in STARTERS:
        _refuse_revision(name, revision)
    folder = hub.cached_snapshot(name, revision)
    if folder is None:
        folder = hub.fetch_snapshot(name, revision, known=known)
    else:
        logger.info("%s: using the cached commit %s", name, folder.name)
    return Found(folder, text, revision, "hub")
