"""The directory of a run: everything one training used, measured and made.

config.toml           the resolved configuration
provenance.json       checkpoint, data and environment, by fingerprint
metrics.jsonl         one line an optimizer step, one an evaluation
predictions.parquet   each validation example with its prediction, loss and correctness
report.html           all of it on one page
checkpoints/          kept during the run: `best`, and `step-…` where asked for
model/                the result: a standard Hugging Face folder
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from warmstart.errors import UsageError, WarmstartError
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Step


@dataclass(frozen=True)
class RunDirectory:
    """The paths inside a run directory, and the records that are written as it goes."""

    path: Path

    def check_free(self) -> None:
        """Raises UsageError "run-exists" where something is there already, "run-path" for a path that is no UTF-8."""
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
            taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        if taken:
            raise UsageError(
                "run-exists",
                "the output of a run must be a new or an empty directory",
                where=str(self.path),
                fix="choose another -o, or remove the directory",
            )

    def create(self) -> None:
        """Make the empty directory. Raises what `check_free` raises, and WarmstartError "run-unwritable"."""
        self.check_free()
        with self._reported():
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    def step_checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}"

    def prune(self, keep: int) -> None:
        """Remove all but the newest `keep` step checkpoints."""
        made = [path for path in (self.path / "checkpoints").iterdir() if re.fullmatch(r"step-\d+", path.name)]
        for old in sorted(made, key=lambda path: int(path.name.removeprefix("step-")))[:-keep]:
            shutil.rmtree(old)

    def write_config(self, config: TrainConfig, *, model: str, task: str, options: Mapping[str, Any]) -> None:
        document = {
            "model": model.encode("utf-8", "backslashreplace").decode(),  # a path may hold bytes that are no UTF-8
            "task": task,
            "options": dict(options),
            # TOML has no null; `make_config` reads the word back.
            "train": {key: "none" if value is None else value for key, value in config.model_dump().items()},
        }
        with self._reported():
            (self.path / "config.toml").write_text(tomli_w.dumps(document), encoding="utf-8")

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        with self._reported():
            (self.path / "provenance.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def log_step(self, step: Step) -> None:
        self._log(dataclasses.asdict(step))

    def log_validation(self, step: Step, values: Mapping[str, Any]) -> None:
        self._log({"step": step.step, "epoch": step.epoch, "validation": values})

    def _log(self, line: Mapping[str, Any]) -> None:
        with self._reported(), (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

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
