"""Snapshots: everything the rest of a run needs, at a boundary between two optimizer steps.

A snapshot is the folder `checkpoints/step-…`, committed in one rename (`checkpoints/commit.py`):

    config.json, model.safetensors, tokenizer files    a checkpoint like any other, which `ws.load` takes
    training_state/state.json                          step, selection, scheduler, length of metrics.jsonl, …
    training_state/optimizer.safetensors               the tensors of the optimizer's state and of recipes
    MANIFEST.json                                      size and SHA-256 of every file

No generator is saved: order, masks and dropout are functions of (seed, epoch or step, example).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from warmstart.checkpoints.commit import commit_folder
from warmstart.checkpoints.save import write_model
from warmstart.errors import CheckpointError
from warmstart.training.loop import Step
from warmstart.training.selection import Selection
from warmstart.training.snapshot_folder import check_committed, newest, snapshots
from warmstart.training.state_files import pack, read_tensors, read_values, unpack, write_tensors

STATE = "training_state/state.json"
OPTIMIZER = "training_state/optimizer.safetensors"
FORMAT, READ = 2, (1, 2)  # in 1 the moments of a word table were whole
_TREES = ("optimizer", "scheduler", "scaler", "recipes")  # the fields of a state that hold tensors


@dataclass(frozen=True)
class State:
    """The state of a run beside its weights, after `step`. `evaluated`: the last step whose evaluation is done."""

    step: Step
    evaluated: int
    selection: Selection
    metrics_bytes: int  # of metrics.jsonl, up to and with this state
    optimizer: Mapping[str, Any]  # as its state_dict() gives it
    scheduler: Mapping[str, Any]
    scaler: Mapping[str, Any] = field(default_factory=dict)  # of the loss, under fp16
    recipes: Mapping[str, Any] = field(default_factory=dict)  # by recipe, what it keeps beside all this


@dataclass(frozen=True)
class Snapshot:
    """A verified snapshot. The weights are a checkpoint's; see `checkpoints.load_weights`."""

    path: Path
    state: State


def save_snapshot(target: Path, model: Any, tokenizer: Any, state: State) -> None:
    """Commit a snapshot; one of the same name is replaced. Raises CheckpointError "save-failed"."""
    trees = {name: vars(state)[name] for name in _TREES}
    values, tensors = pack(trees)
    document = {
        "format": FORMAT,
        "step": asdict(state.step),
        "evaluated": state.evaluated,
        "selection": pack(asdict(state.selection))[0],
        "metrics_bytes": state.metrics_bytes,
        **values,
    }
    known: dict[str, str] = {}

    def write(folder: Path) -> None:
        (folder / STATE).parent.mkdir()
        # Hashing and writing both let go of the interpreter: two files at once take the time of the larger one.
        with ThreadPoolExecutor(1) as beside:
            optimizer = beside.submit(write_tensors, folder / OPTIMIZER, tensors)
            write_model(model, tokenizer, folder)
            known[OPTIMIZER] = optimizer.result()
        (folder / STATE).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")

    commit_folder(target, write, replace=True, known=known)


def read_snapshot(path: Path) -> Snapshot:
    """Check a snapshot against its manifest and read its state.

    Raises CheckpointError: "state-unreadable", "snapshot-uncommitted", and those of `manifest.check_manifest`.
    """
    check_committed(path)
    document = read_values(path / STATE)
    try:
        if document["format"] not in READ:
            raise ValueError(f"its format is {document['format']!r}, this version reads {', '.join(map(str, READ))}")
        trees = {name: document[name] for name in _TREES if name in document}
        tree = unpack(trees, read_tensors(path / OPTIMIZER))
        state = State(
            step=Step(**document["step"]),
            evaluated=int(document["evaluated"]),
            selection=Selection(**unpack(document["selection"], {})),
            metrics_bytes=int(document["metrics_bytes"]),
            **tree,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "state-unreadable",
            f"the saved state of a run cannot be used: {error}",
            where=str(path / STATE),
            fix="remove the folder that holds it; the run then goes on from an earlier one, or from its start",
        ) from None
    return Snapshot(path, state)


def newest_verified(folder: Path) -> tuple[Snapshot | None, list[dict[str, str]]]:
    """The newest snapshot in `folder` (`checkpoints/`) that verifies, and what was set aside to come to it.

    Raises TrainingError "snapshot-unread", as `snapshot_folder.newest` does.
    """
    return newest(folder, read_snapshot)


def best_steps(folder: Path) -> set[int]:
    """The steps whose best weights the snapshots in `folder` would go on from."""
    steps = set()
    for path in snapshots(folder):
        with suppress(CheckpointError, KeyError, TypeError):  # a damaged one is not gone on from
            steps.add(int(read_values(path / STATE)["selection"]["best_step"]))
    return steps
