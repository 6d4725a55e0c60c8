"""Exact resume for a loop that a person wrote: the state of everything that the loop changes, as snapshots.

    runs/own/checkpoints/step-000050/   model.safetensors, state.safetensors, state.json, MANIFEST.json
    runs/own/attempts.jsonl             every start and the step it began at

Snapshots are committed as those of `ws.train` are (`checkpoints/commit.py`): whole, or not there; no pickle.
"""

from __future__ import annotations

import json
import logging
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from warmstart.checkpoints.commit import commit_folder, make_folder, sweep
from warmstart.errors import CheckpointError, UsageError, WarmstartError, is_out_of_memory
from warmstart.training.attempts import NAME as ATTEMPTS
from warmstart.training.attempts import Attempts
from warmstart.training.generators import Generator, capture, restore
from warmstart.training.lineage import differences, numerics
from warmstart.training.lock import locked
from warmstart.training.pace import Pace
from warmstart.training.phases import phase
from warmstart.training.run import PROVENANCE
from warmstart.training.snapshot_folder import check_committed, newest, prune, snapshot_path, snapshot_unread
from warmstart.training.state_files import pack, read_tensors, read_values, unpack, write_tensors

log = logging.getLogger("warmstart")

WEIGHTS, TENSORS, STATE = "model.safetensors", "state.safetensors", "state.json"
FORMAT = 1
LEAST_KEPT = 2  # one may turn out to be damaged


class Stateful(Protocol):
    """Anything that gives its state as plain values and tensors, and takes it back."""

    def state_dict(self) -> dict[str, Any]:
        """The state, of None, bool, int, float, str, list, tuple, dict and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Become what gave that state."""


class Checkpointer:
    """Saves and restores all that a loop changes, so that a killed loop ends with the bits of one that was not.

    `folder`: of the run; the snapshots stand in its `checkpoints/`, the rest is the loop's own. `model`, `optimizer`,
    `scheduler`, and `scaler` (a `torch.amp.GradScaler`): anything with `state_dict` and `load_state_dict`; `others`
    names more of the kind, such as an average of the weights. The states of torch's, numpy's and Python's global
    generators are saved with them, and of `generators`, by name. `every`: steps between snapshots; None: when 50 times
    the cost of the last one has passed, the first after 30 s. `keep`: the newest snapshots that stay, at least 2.
    `settings`: plain values that make the run what it is (seed, digests of the data …); a snapshot with others is
    refused.

        ckpt = ws.Checkpointer("runs/own", model=model, optimizer=optimizer, scheduler=scheduler, every=50)
        for step in range(ckpt.resume(), total):
            train_on(batch_of(step))
            ckpt.step_done(step)

    Steps count from 0, and a step is what stands between two calls of `step_done`: gradients that wait for more
    micro-batches are not saved. What a loop draws between `resume` and its first step it must draw there in every
    attempt or not at all: `iter(DataLoader(…))` draws from torch's generator unless it is given one of its own.

    One process at a time; the folder is held from `resume` to `close`, or to the end of the process.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        model: Stateful,
        optimizer: Stateful,
        scheduler: Stateful | None = None,
        scaler: Stateful | None = None,
        others: Mapping[str, Stateful] | None = None,
        generators: Mapping[str, Generator] | None = None,
        settings: Mapping[str, Any] | None = None,
        every: int | None = None,
        keep: int = 2,
    ) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError("checkpointer-value", f"{name} counts from 1", value=value, fix=f"give {name}=2")
        self.folder = Path(folder)
        self.checkpoints = self.folder / "checkpoints"
        self._model = model
        named = {"optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
        self._parts = {
            **{name: part for name, part in named.items() if part is not None},
            **{f"others.{name}": part for name, part in (others or {}).items()},
        }
        self._generators = dict(generators or {})
        self._settings = dict(settings or {})
        self._keep = max(LEAST_KEPT, keep)
        self._pace = Pace(every)
        self._held: ExitStack | None = None
        self._next = 0  # the step that is to come

    def resume(self) -> int:
        """Become what the newest verified snapshot holds; returns the step to begin at, 0 without a snapshot.

        A snapshot that does not verify is set aside as `step-….rejected` with the reason, and the one before it taken.
        Raises UsageError "run-locked", "folder-taken", "resume-differs" (other `settings`); CheckpointError
        "state-unfit" where the state is not that of this model, optimizer, scheduler or generators, whose state is
        undefined then; TrainingError "snapshot-unread" where memory, handles or a disk kept it from being read or taken
        over, with the state undefined, too; UsageError "state-unsavable", WarmstartError "run-unwritable".
        """
        self.close()
        try:
            self._hold()
            self._pack()  # a state that cannot be saved is an error now, not after the first fifty steps
            found, rejected = newest(self.checkpoints, _read)
            steps = 0 if found is None else self._restore(*found)
            Attempts(self.folder / ATTEMPTS).start(steps, set_aside=rejected)
        except OSError as error:
            self.close()
            raise WarmstartError(
                "run-unwritable",
                f"the run directory cannot be written: {error.strerror or error}",
                where=str(error.filename or self.folder),
                fix="check free space and permissions, or choose another folder",
            ) from None
        except BaseException:
            self.close()
            raise
        self._next = steps
        log.info("resuming at step %d" if found else "no snapshot: starting at step %d", steps)
        return steps

    def step_done(self, step: int) -> bool:
        """Step `step`, counted from 0, is done; saves where that is due. True if a snapshot was saved.

        A disk that takes no snapshot is warned about and ends no run; the one before it stays. Raises UsageError
        "not-resumed" before `resume`, "step-repeated" for one that was done before, "state-unsavable".
        """
        self._check(step, at_least=self._next)
        self._next = step + 1
        if not self._pace.due(step + 1):
            return False
        try:
            self.save(step)
        except CheckpointError as error:
            if error.code != "save-failed":
                raise
            log.warning("no snapshot of step %d: %s; the run goes on", step, error.what)
            return False
        return True

    def save(self, step: int) -> Path:
        """Commit a snapshot now, after step `step`, and remove the oldest. Returns its folder.

        Raises CheckpointError "save-failed", after which the snapshots before it are as they were; UsageError
        "not-resumed", "step-repeated" and "state-unsavable".
        """
        self._check(step, at_least=self._next - 1)
        self._next = step + 1
        started = time.monotonic()
        target = snapshot_path(self.checkpoints, step + 1)
        document, files = self._pack()
        document |= {"format": FORMAT, "steps": step + 1, "settings": self._settings, "numerics": _numerics()}
        known: dict[str, str] = {}

        def write(folder: Path) -> None:
            for name, tensors in files.items():
                known[name] = write_tensors(folder / name, tensors)
            (folder / STATE).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")

        try:
            with phase("save", step):
                commit_folder(target, write, replace=True, known=known)
            with phase("prune", step):
                self._prune()
        finally:
            self._pace.saved(time.monotonic() - started)
        return target

    def close(self) -> None:
        """Let go of the folder. The snapshots stay; `resume` takes it again."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _hold(self) -> None:
        make_folder(self.checkpoints)
        if (self.folder / PROVENANCE).exists():
            raise UsageError(
                "folder-taken",
                "a run of ws.train stands in this folder",
                where=str(self.folder),
                fix="give the Checkpointer a folder of its own; a run of ws.train resumes by the same call of ws.train",
            )
        self._held = ExitStack()
        self._held.enter_context(locked(self.folder))
        weakref.finalize(self, self._held.close)  # also at the end of the process
        sweep(self.checkpoints)

    def _pack(self) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
        """The JSON of the whole state, and its tensors by file."""
        try:
            weights, tensors = pack(self._model.state_dict())
            states = {name: part.state_dict() for name, part in self._parts.items()}
            values, more = pack({"parts": states, "generators": capture(self._generators)})
            json.dumps(self._settings, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                "state-unsavable",
                f"the state of this loop cannot be saved without pickle: {error}",
                where=str(self.folder),
                fix="a state_dict() may hold numbers, texts, lists, dicts and dense tensors; settings no tensors",
            ) from None
        return {"model": weights, **values}, {WEIGHTS: tensors, TENSORS: more}

    def _restore(self, path: Path, document: Mapping[str, Any], files: Mapping[str, Mapping[str, torch.Tensor]]) -> int:
        self._check_settings(path, document)
        try:
            values = unpack({"parts": document["parts"], "generators": document["generators"]}, files[TENSORS])
            if values["parts"].keys() != self._parts.keys():
                raise KeyError(f"it holds {sorted(values['parts'])}, and {sorted(self._parts)} are given")
            self._model.load_state_dict(unpack(document["model"], files[WEIGHTS]))
            for name, part in self._parts.items():
                part.load_state_dict(values["parts"][name])
            restore(values["generators"], self._generators)
        except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError, MemoryError) as error:
            if is_out_of_memory(error):
                raise snapshot_unread(path, error) from error
            raise CheckpointError(
                "state-unfit",
                f"the state in the snapshot is not that of what was given: {error}",
                where=str(path),
                fix="give the model, optimizer, scheduler and generators it was saved from, or another folder",
            ) from None
        return int(document["steps"])

    def _check_settings(self, path: Path, document: Mapping[str, Any]) -> None:
        if found := differences(document["settings"], self._settings):
            listed = "\n".join(f"    {difference}" for difference in found)
            raise UsageError(
                "resume-differs",
                f"this folder holds a run that was begun with other settings:\n{listed}",
                where=str(path),
                value=", ".join(difference.name for difference in found),
                fix="give the settings it was begun with, or another folder",
            )
        for difference in differences(document["numerics"], _numerics()):
            log.warning("the last digits may differ from those of a run that was not interrupted: %s", difference)

    def _prune(self) -> None:
        try:
            prune(self.checkpoints, self._keep)
        except OSError as error:
            log.warning("an old snapshot could not be removed: %s", error)

    def _check(self, step: int, *, at_least: int) -> None:
        if self._held is None:
            raise UsageError(
                "not-resumed",
                "nothing is saved before it is known what is there",
                where=str(self.folder),
                fix="call start = ckpt.resume() first, and begin at that step",
            )
        if step < at_least:
            raise UsageError(
                "step-repeated",
                f"step {step} was done before: the next one is step {self._next}",
                where=str(self.folder),
                value=step,
                fix="begin at the step that resume() gives, and count on from there",
            )


def _read(path: Path) -> tuple[Path, Mapping[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """A snapshot's document and tensors. Raises CheckpointError for one that does not verify."""
    check_committed(path)
    document = read_values(path / STATE)
    keys = {"format", "steps", "settings", "numerics", "model", "parts", "generators"}
    if not isinstance(document, dict) or document.get("format") != FORMAT or not keys <= document.keys():
        raise CheckpointError(
            "state-unreadable",
            "the saved state of a run cannot be used: it is not that of a Checkpointer of this version",
            where=str(path / STATE),
            fix="remove the folder that holds it; the run then goes on from an earlier one, or from its start",
        )
    return path, document, {name: read_tensors(path / name) for name in (WEIGHTS, TENSORS)}


def _numerics() -> dict[str, Any]:
    found = numerics("")
    return {"threads": found["threads"], "capability": found["capability"], "torch": torch.__version__}
