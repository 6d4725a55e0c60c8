"""The directory of a run: everything one training used, measured and made.

config.toml           the resolved configuration
provenance.json       checkpoint, data and environment, by fingerprint
metrics.jsonl         one line an optimizer step, one an evaluation; each once, however often the run was resumed
attempts.jsonl        every start, the step it began at and how it ended
predictions.parquet   each validation example with its prediction, loss and correctness
report.html           all of it on one page
nonfinite/            a step that was not finite and ended the run, for `warmstart replay`
checkpoints/          `best`; while the run goes `best-…` and `step-…`, of which the latter are kept where asked for
model/                the result: a standard Hugging Face folder
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints.commit import make_folder, remove_folder, sweep
from warmstart.durable import flush, write_file
from warmstart.errors import UsageError, WarmstartError
from warmstart.training.attempts import NAME as ATTEMPTS
from warmstart.training.attempts import Attempts, How
from warmstart.training.lock import LOCK, OWNER
from warmstart.training.loop import Step
from warmstart.training.memory import Cut
from warmstart.training.nonfinite import FOLDER as NONFINITE
from warmstart.training.snapshot_folder import prune, snapshot_path

log = logging.getLogger("warmstart")

CONFIG, PROVENANCE = "config.toml", "provenance.json"
_BEFORE_THE_START = frozenset({CONFIG, "checkpoints", LOCK, OWNER})
_TAIL = 1 << 16  # bytes of metrics.jsonl that certainly hold a whole line
_WEIGHTS = re.compile(r"step-\d+|best(-\d+)?")
_TEMPORARY = re.compile(r"\.[a-z]+\.(toml|json)\.tmp-[0-9a-f]{12}")


@contextmanager
def tidying() -> Iterator[None]:
    """What cannot be removed in a block of this is warned about, and ends no run: the next time tries again."""
    try:
        yield
    except (WarmstartError, OSError) as error:
        log.warning(
            "what is needed no more could not be removed: %s",
            error.what if isinstance(error, WarmstartError) else error,
        )


@dataclass(frozen=True)
class RunDirectory:
    """The paths inside a run directory, and the records that are written as it goes."""

    path: Path

    def check_usable(self) -> bool:
        """Is a run of ours begun here, so that it can be resumed; False for a new or an empty directory.

        Raises UsageError "run-exists" where something else is there, "run-damaged" where a run is there without its
        record, "run-path" for a path that is no UTF-8.
        """
        try:
            os.fspath(self.path).encode()
        except UnicodeEncodeError:  # the tokenizers library could not save there, at the very end of the run
            raise UsageError(
                "run-path",
                "the path of a run must be UTF-8",
                where=str(self.path),
                fix="choose another -o",
            ) from None
        with self._reported():
            if not self.path.exists():
                return False
            names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else None
            held = names is not None and (ATTEMPTS in names or self._holds_weights())
        if names is not None and {PROVENANCE, CONFIG} <= names:
            return True
        if names is not None and held:
            missing = " and ".join(name for name in (PROVENANCE, CONFIG) if name not in names)
            raise UsageError(
                "run-damaged",
                f"here stands what a run has made, without the record of what it was made from: {missing}",
                where=str(self.path),
                fix=f"put {missing} back, and the run goes on; or choose another -o. Nothing here was changed",
            )
        # A kill may have come before provenance.json, which is written last of what stands there at a start.
        if names is None or not all(name in _BEFORE_THE_START or _TEMPORARY.fullmatch(name) for name in names):
            raise UsageError(
                "run-exists",
                "the output of a run must be a new or an empty directory, or a run to resume",
                where=str(self.path),
                fix="choose another -o, or remove the directory",
            )
        return False

    def _holds_weights(self) -> bool:
        folder = self.checkpoints
        return folder.is_dir() and any(_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())

    def create(self) -> None:
        """Make the directory. Raises WarmstartError "run-unwritable"."""
        with self._reported():
            make_folder(self.checkpoints)

    def sweep(self) -> None:
        """Remove what killed attempts left half done. Only for who holds the lock."""
        with self._reported():
            make_folder(self.checkpoints)
            for folder in (self.path, self.checkpoints, self.path / NONFINITE):
                if folder.is_dir():
                    sweep(folder)
            for path in self.path.iterdir():
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink()

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Attempts:
        return Attempts(self.path / ATTEMPTS)

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    def step_checkpoint(self, step: int) -> Path:
        return snapshot_path(self.checkpoints, step)

    def best_checkpoint(self, step: int) -> Path:
        """Where the best weights stand that were evaluated after `step`: `best` once the run is finished."""
        while_it_goes = self.checkpoints / f"best-{step:06d}"
        return while_it_goes if while_it_goes.exists() or not self.best.exists() else self.best

    def bad_step(self, step: int) -> Path:
        """Where a step is kept that was not finite; see `nonfinite.py`."""
        return snapshot_path(self.path / NONFINITE, step)

    @property
    def best(self) -> Path:
        return self.checkpoints / "best"

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` snapshots; 0 removes all."""
        with self._reported():
            prune(self.checkpoints, keep)

    def prune_best(self, needed: Collection[int]) -> None:
        """Remove the best weights of earlier evaluations, but those after the steps `needed`."""
        with self._reported():
            for path in self.checkpoints.iterdir():
                if re.fullmatch(r"best-\d+", path.name) and int(path.name.removeprefix("best-")) not in needed:
                    remove_folder(path)

    def tidy(self, best_step: int | None, keep: int) -> None:
        """Leave what a finished run keeps: the best weights as `best`, and the newest `keep` snapshots."""
        self.prune(keep)
        self.prune_best(() if best_step is None else (best_step,))
        with self._reported():
            if best_step is not None and (found := self.best_checkpoint(best_step)) != self.best and found.exists():
                found.rename(self.best)

    def write_config(self, text: str) -> None:
        """`config.toml`, which `training.recipe` makes."""
        self._write(CONFIG, text)

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        self._write(PROVENANCE, json.dumps(values, indent=2) + "\n")

    def read_provenance(self) -> dict[str, Any]:
        """What `write_provenance` wrote. Raises UsageError "run-damaged"."""
        path = self.path / PROVENANCE
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(error) from None
        return found

    def _damaged(self, error: Exception) -> UsageError:
        return UsageError(
            "run-damaged",
            f"the record of what a run was made from cannot be read: {error}",
            where=str(self.path / PROVENANCE),
            fix="put the file back, or choose another -o and train anew",
        )

    def read_cuts(self) -> list[Cut]:
        """From which steps on micro-batches are cut, because memory ran out. Raises UsageError "run-damaged"."""
        try:
            return [Cut(int(cut["from_step"]), int(cut["parts"])) for cut in self.read_provenance().get("cuts", [])]
        except (TypeError, KeyError, ValueError) as error:
            raise self._damaged(error) from None

    def note_cut(self, attempt: int, cut: Cut) -> None:
        """Write a new cut down before it is used, so that a resumed run cuts at the same step."""
        known = self.read_provenance()
        self.write_provenance({**known, "cuts": [*known.get("cuts", []), dataclasses.asdict(cut)]})
        with self._reported():
            self.attempts.cut(attempt, cut.from_step, cut.parts)

    def log_step(self, step: Step) -> None:
        self._log(dataclasses.asdict(step))

    def log_validation(self, step: Step, values: Mapping[str, Any]) -> None:
        self._log({"step": step.step, "epoch": step.epoch, "validation": values})

    def note_start(self, began_at: int, *, set_aside: Sequence[Any] = (), differences: Sequence[Any] = ()) -> int:
        """See `Attempts.start`. Before `cut_metrics`, which takes the steps away that are made again."""
        redone = max(0, self.last_step() - began_at)
        with self._reported():
            return self.attempts.start(began_at, redone=redone, set_aside=set_aside, differences=differences)

    def note_end(
        self, number: int, how: How, step: int, *, code: str | None = None, best_step: int | None = None
    ) -> None:
        """See `Attempts.end`."""
        with self._reported():
            self.attempts.end(number, how, step, code=code, best_step=best_step)

    def metrics_size(self) -> int:
        """Bytes of metrics.jsonl, all of them, and its name, on the disk when this returns."""
        with self._reported(), self.metrics.open("ab") as file:
            os.fsync(file.fileno())
            flush(self.path)
            return file.tell()

    def last_step(self) -> int:
        """The last optimizer step that metrics.jsonl has a whole line of; 0 if none."""
        if not self.metrics.exists():
            return 0
        with self._reported(), self.metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        for line in reversed(lines):
            with suppress(ValueError, KeyError, TypeError):
                return int(json.loads(line)["step"])
        return 0

    def cut_metrics(self, size: int) -> bool:
        """Cut metrics.jsonl to its first `size` bytes: what the snapshot knows. False if it is shorter than that."""
        with self._reported(), self.metrics.open("ab") as file:
            whole = file.tell() >= size
            file.truncate(min(size, file.tell()))
            os.fsync(file.fileno())
        return whole

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def _log(self, line: Mapping[str, Any]) -> None:
        with self._reported(), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        """The whole file or the old one, whatever happens."""
        with self._reported():
            write_file(self.path / name, text.encode())

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WarmstartError(
                "run-unwritable",
                f"the run directory cannot be written: {error.strerror or error}",
                where=str(error.filename or self.path),
                fix="check free space and permissions, or choose another -o",
            ) from None
