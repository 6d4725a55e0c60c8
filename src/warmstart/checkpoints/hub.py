"""The road to a model hub: the local hub cache first, then one short probe, then only the files that are needed.

The environment is Hugging Face's own: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE. It is read at each
call.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub

from warmstart.checkpoints.weights import INDEX, SINGLE
from warmstart.errors import CheckpointError, did_you_mean

logger = logging.getLogger("warmstart")

PROBE_SECONDS = 3.0  # for the one question "is it there?", name resolution included
_NAME = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?(?:/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?)?"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})
# What is fetched: settings, tokenizers, templates. Never code, never a pickle; weights are chosen apart.
_SMALL = (
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*/config.json",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
)
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def is_hub_name(name: str) -> bool:
    """Whether a name could be a repository: `org/name`, or `name` alone as the oldest ones are."""
    return bool(_NAME.fullmatch(name)) and ".." not in name and "--" not in name


def is_revision(revision: str) -> bool:
    """Whether this could be a branch, a tag, a commit or `refs/pr/N`."""
    return bool(_REVISION.fullmatch(revision)) and ".." not in revision


def hub_cache() -> Path:
    """The folder of the hub cache, by the same rules as huggingface_hub."""
    if own := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(own)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "huggingface" / "hub"
    return Path("~/.cache/huggingface/hub").expanduser()


def cached_names() -> tuple[str, ...]:
    """Names of the models in the hub cache that have a config, sorted."""
    repositories = sorted(hub_cache().glob("models--*"))
    return tuple(
        repository.name.removeprefix("models--").replace("--", "/")
        for repository in repositories
        if any(repository.glob("snapshots/*/config.json"))
    )


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The cached folder of a revision (branch, tag or commit; None is `main`), if config and weights are there."""
    repository = hub_cache() / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else (revision or "")
    snapshot = repository / "snapshots" / commit
    if not re.fullmatch(r"[A-Za-z0-9._-]+", commit) or not (snapshot / "config.json").is_file():
        return None
    return snapshot if _has_weights(snapshot) else None


def _has_weights(snapshot: Path) -> bool:
    if (snapshot / SINGLE).is_file():
        return True
    if not (snapshot / INDEX).is_file():
        return False
    text = (snapshot / INDEX).read_text(encoding="utf-8", errors="replace")
    return all((snapshot / shard).is_file() for shard in set(_SHARD.findall(text)))


def is_offline() -> bool:
    """Whether the person has switched the hub off."""
    return any(os.environ.get(key, "").upper() in _TRUE for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")


@dataclass(frozen=True, slots=True)
class _Answer:
    info: Any = None
    error: Exception | None = None


def fetch_snapshot(name: str, revision: str | None, *, known: tuple[str, ...]) -> Path:
    """Download the needed files of one revision into the hub cache; returns the snapshot's folder.

    `known` are the names that work without the hub; errors list them. When the hub cannot be reached, this takes at
    most PROBE_SECONDS. Raises CheckpointError `hub-offline`, `hub-unreachable`, `hub-not-found`,
    `hub-revision-not-found`, `hub-gated`, `hub-forbidden`, `hub-error`, `pickle-refused`, `hub-download-failed`.
    """
    if is_offline():
        raise _unreachable("hub-offline", name, "the hub is switched off (HF_HUB_OFFLINE)", known)
    info = _probe(name, revision, known)
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    wanted = _wanted(name, files)
    size = sum(files[file] for file in wanted)
    logger.warning("fetching %s from %s: %d files, %.1f MB", name, endpoint(), len(wanted), size / 1e6)
    weights = [file for file in wanted if file.endswith(".safetensors")]
    try:
        # Weights last: by them a snapshot in the cache is taken for whole, also after a kill.
        first = _download(name, revision, [file for file in wanted if file not in weights])
        folder = _download(name, revision, weights)
        if folder != first:  # the branch moved between the two
            _download(name, revision, wanted)
    except Exception as error:
        raise CheckpointError(
            "hub-download-failed",
            f"fetching {name} stopped: {_line(error)}",
            where=endpoint(),
            value=name,
            fix="run the same again: what has arrived is kept and the rest is fetched",
        ) from error
    return folder


def _download(name: str, revision: str | None, files: list[str]) -> Path:
    folder = huggingface_hub.snapshot_download(
        name,
        revision=revision,
        cache_dir=hub_cache(),
        allow_patterns=[_literal(file) for file in files],
        endpoint=endpoint(),
        etag_timeout=PROBE_SECONDS,
        library_name="warmstart",
    )
    return Path(folder)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _wanted(name: str, files: dict[str, int]) -> list[str]:
    wanted = {file for file in files if any(fnmatch.fnmatchcase(file, pattern) for pattern in _SMALL)}
    wanted = {file for file in wanted if file.count("/") <= 1 and not file.startswith((".", "onnx/", "openvino/"))}
    if SINGLE in files:
        wanted.add(SINGLE)
        wanted.discard(INDEX)
    elif INDEX in files:
        wanted |= {file for file in files if _SHARD.fullmatch(file)}
    else:
        pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack"))]
        raise CheckpointError(
            "pickle-refused" if pickles else "weights-not-found",
            f"{name} has no safetensors weights" + (f", only {pickles[0]}, which is never read" if pickles else ""),
            where=f"{endpoint()}/{name}",
            fix="choose a checkpoint with model.safetensors; the hub often has a converted revision, name@refs/pr/N",
        )
    return sorted(wanted)


def _probe(name: str, revision: str | None, known: tuple[str, ...]) -> Any:
    """One question to the hub, with a time limit that also holds while a name is resolved or a packet is swallowed."""
    answers: list[_Answer] = []

    def ask() -> None:
        try:
            api = huggingface_hub.HfApi(endpoint=endpoint(), library_name="warmstart")
            answers.append(
                _Answer(info=api.model_info(name, revision=revision, files_metadata=True, timeout=PROBE_SECONDS))
            )
        except Exception as error:
            answers.append(_Answer(error=error))

    # A thread, because a blocking name lookup cannot be interrupted; a daemon, so that it never holds up the exit.
    asking = threading.Thread(target=ask, name="warmstart-hub-probe", daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    if not answers:
        raise _unreachable("hub-unreachable", name, f"the hub did not answer within {PROBE_SECONDS:.0f} s", known)
    if answers[0].error is not None:
        raise _hub_error(answers[0].error, name, revision, known) from answers[0].error
    return answers[0].info


def _hub_error(error: Exception, name: str, revision: str | None, known: tuple[str, ...]) -> CheckpointError:
    errors = huggingface_hub.errors
    place = f"{endpoint()}/{name}"
    if isinstance(error, errors.GatedRepoError):
        what, fix = f"{name} is gated", f"ask for access on {place}, then set HF_TOKEN to a token of yours"
        return CheckpointError("hub-gated", what, where=place, fix=fix)
    if isinstance(error, errors.RevisionNotFoundError):
        what, fix = (
            f"{name} has no revision {revision!r}",
            "leave @… out for the newest, or name a branch, tag or commit",
        )
        return CheckpointError("hub-revision-not-found", what, where=place, value=revision, fix=fix)
    if isinstance(error, errors.RepositoryNotFoundError):
        what = f"the hub has no model {name!r} (or it is private and HF_TOKEN does not open it)"
        return CheckpointError("hub-not-found", what, where=place, value=name, fix=did_you_mean(name, known))
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            what, fix = (
                f"the hub refuses {name} ({status})",
                "check HF_TOKEN: it may be wrong, expired or without this right",
            )
            return CheckpointError("hub-forbidden", what, where=place, value=status, fix=fix)
        what, fix = f"the hub answers {status} for {name}", f"try again later; without the hub: {', '.join(known)}"
        return CheckpointError("hub-error", what, where=place, value=status, fix=fix)
    return _unreachable("hub-unreachable", name, f"the hub cannot be reached ({_line(error)})", known)


def _unreachable(code: str, name: str, why: str, known: tuple[str, ...]) -> CheckpointError:
    hint = did_you_mean(name, known)
    return CheckpointError(
        code,
        f"{name!r} is neither a folder here nor in the cache, and {why}",
        where=endpoint(),
        value=name,
        fix=f"{f'{hint} ' if hint.startswith('did') else ''}without the hub there are: {', '.join(known)}",
    )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
