"""A step whose loss or gradient is not finite, kept so that one command computes it again.

    nonfinite/step-000012/
      config.json, model.safetensors, tokenizer files   the weights before the step: a checkpoint like any other
      step/step.json                                    what became non-finite; seed, precision, rows and their places
      step/batch.safetensors                            every array of the step's features, as the model got them
      step/optimizer.safetensors                        the optimizer's tensors before the step

Committed in one rename with a manifest, without pickle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warmstart.batching import collate
from warmstart.checkpoints.commit import commit_folder
from warmstart.checkpoints.manifest import check_manifest
from warmstart.checkpoints.save import write_model
from warmstart.errors import CheckpointError, TrainingError
from warmstart.features import Batch, Feature
from warmstart.tasks import Task
from warmstart.tasks.class_loss import ClassLoss
from warmstart.training.state_files import pack, read_tensors, read_values, unpack, write_tensors

FOLDER = "nonfinite"
STEP, BATCH, OPTIMIZER = "step/step.json", "step/batch.safetensors", "step/optimizer.safetensors"
FORMAT, READ = 2, (1, 2)  # in 1 the moments of a word table were whole


@dataclass(frozen=True)
class BadStep:
    """A step that was computed and not made. `loss` and `norm` are those of the mean over the rows.

    `norm`: None where it was not computed, because the loss was not finite.
    """

    step: int  # from 1
    loss: float
    norm: float | None
    batches: tuple[Batch, ...]  # micro-batches, as they were computed
    seed: int  # of dropout
    device: str
    precision: str
    scale: float  # of the loss, under fp16

    @property
    def what(self) -> str:
        return "loss" if self.norm is None else "gradient norm"

    @property
    def value(self) -> float:
        return self.loss if self.norm is None else self.norm

    def error(self, kept: Path | None = None) -> TrainingError:
        """The error that ends the run: "loss-not-finite". `kept`: where `write_bad_step` put it."""
        found = f"the {self.what} became {self.value} in step {self.step}"
        advice = "lower learning_rate, set clip, or look for extreme values in the rows"
        return TrainingError(
            "loss-not-finite",
            f"{found}; the step was not made, and nothing is saved from it",
            where=f"step {self.step}" if kept is None else str(kept),
            value=self.value,
            fix=advice if kept is None else f"warmstart replay {kept} says which rows and parameters; {advice}",
        )


@dataclass(frozen=True)
class Kept:
    """What `read_bad_step` gives. `task`: the plain fields of the task that learned; `places`: by row.

    `trained`: the parameters that asked for a gradient; `in_eval`: the modules that were frozen, and had no dropout.
    """

    bad: BadStep
    task: Mapping[str, Any]
    class_loss: ClassLoss | None
    trained: frozenset[str]
    in_eval: frozenset[str]
    places: Mapping[int, str]
    threads: int


def write_bad_step(
    target: Path,
    bad: BadStep,
    *,
    model: Any,
    tokenizer: Any,
    task: Task,
    record: bytes,
    places: Mapping[int, str],
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
) -> Path:
    """Commit a folder that `warmstart replay` reads; one of the same name is replaced. Returns its path.

    `record`: the `warmstart.json` by which `ws.load` makes the task. Raises CheckpointError "save-failed".
    """
    batches, arrays = pack([[_taken_apart(feature) for feature in batch.features] for batch in bad.batches])
    states, tensors = pack({"optimizer": optimizer, "scheduler": scheduler})
    class_loss = _fields(task).get("class_loss")
    document = {
        "format": FORMAT,
        "class_loss": pack(dataclasses.asdict(class_loss))[0] if isinstance(class_loss, ClassLoss) else None,
        "trained": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "in_eval": [name for name, module in model.named_modules() if not module.training],
        **pack({field: value for field, value in _fields(bad).items() if field != "batches"})[0],
        "batches": batches,
        "task": pack(_plain(_fields(task)))[0],
        "places": {str(row): place for row, place in places.items()},
        "threads": torch.get_num_threads(),
        **states,
    }
    known: dict[str, str] = {}

    def write(folder: Path) -> None:
        (folder / STEP).parent.mkdir()
        write_model(model, tokenizer, folder)
        (folder / "warmstart.json").write_bytes(record)
        known[BATCH] = write_tensors(folder / BATCH, arrays)
        known[OPTIMIZER] = write_tensors(folder / OPTIMIZER, tensors)
        (folder / STEP).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")

    return commit_folder(target, write, replace=True, known=known)


def read_bad_step(folder: Path, task: Task) -> Kept:
    """What `write_bad_step` kept, but for weights and optimizer. `task`: knows how its arrays are padded.

    Raises CheckpointError "step-unreadable", and those of `manifest.check_manifest`.
    """
    check_manifest(folder)
    document = read_values(folder / STEP)
    try:
        if document["format"] not in READ:
            raise ValueError(f"its format is {document['format']!r}, this version reads {', '.join(map(str, READ))}")
        parts = unpack(document["batches"], read_tensors(folder / BATCH))
        names = [field.name for field in dataclasses.fields(BadStep) if field.name != "batches"]
        bad = BadStep(
            batches=tuple(collate([_put_together(feature) for feature in part], task.pads) for part in parts),
            **unpack({name: document[name] for name in names}, {}),
        )
        return Kept(
            bad=bad,
            task=unpack(document["task"], {}),
            class_loss=None if document["class_loss"] is None else ClassLoss(**unpack(document["class_loss"], {})),
            trained=frozenset(document["trained"]),
            in_eval=frozenset(document.get("in_eval", ())),  # earlier versions did not say
            places={int(row): str(place) for row, place in document["places"].items()},
            threads=int(document["threads"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(folder, error) from None


def kept_device(folder: Path) -> str:
    """The device a kept step was computed on. Raises CheckpointError "step-unreadable"."""
    document = read_values(folder / STEP)
    if not isinstance(document, dict) or not isinstance(document.get("device"), str):
        raise _unreadable(folder, ValueError("it does not say on which device"))
    return document["device"]


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        "step-unreadable",
        f"the kept step cannot be used: {error}",
        where=str(folder / STEP),
        fix="train again: the run stops at the same step and keeps it anew",
    )


def _taken_apart(feature: Feature) -> dict[str, Any]:
    return {
        "row": feature.row,
        "part": feature.part,
        "length": feature.length,
        "inputs": {name: torch.from_numpy(np.array(array)) for name, array in feature.inputs.items()},
        "targets": {name: torch.from_numpy(np.array(array)) for name, array in feature.targets.items()},
        "meta": _plain(feature.meta),
    }


def _put_together(values: Mapping[str, Any]) -> Feature:
    return Feature(
        row=values["row"],
        part=values["part"],
        length=values["length"],
        inputs={name: tensor.numpy() for name, tensor in values["inputs"].items()},
        targets={name: tensor.numpy() for name, tensor in values["targets"].items()},
        meta=values["meta"],
    )


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: value.__dict__[field.name] for field in dataclasses.fields(value) if field.init}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that JSON can hold: a loss reads numbers and texts; a tokenizer is not among them."""
    kept = {}
    for name, value in values.items():
        try:
            tensors = pack(value)[1]
        except TypeError:
            continue
        if not tensors:
            kept[name] = value
    return kept
