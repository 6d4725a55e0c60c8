"""Replay: a step that was not finite in, computed again, and which rows and parameters it is about."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warmstart.batching import collate
from warmstart.engine import resolve_device
from warmstart.errors import UsageError
from warmstart.features import Feature
from warmstart.pipeline import Pipeline
from warmstart.tasks import Task
from warmstart.tasks.contract import WeighsClasses
from warmstart.training.gradients import Sums, add_gradients
from warmstart.training.loop import finish_gradients
from warmstart.training.nonfinite import FOLDER, STEP, BadStep, kept_device, read_bad_step
from warmstart.training.numerics import numerics
from warmstart.training.snapshot_folder import snapshots
from warmstart.training.threads import threads
from warmstart.verbs.load import load

log = logging.getLogger("warmstart")

TEXT = 60  # characters of a row's text that are shown


@dataclass(frozen=True)
class ReplayedRow:
    """A row of the step. `loss`: the mean over its features, in the batch; `grad_norm`: of the row alone.

    `grad_norm` is computed with the row by itself, hence with other dropout; None where rows learn from each other,
    where `loss` may be None too.
    """

    row: int
    place: str
    loss: float | None
    grad_norm: float | None
    text: str

    @property
    def finite(self) -> bool:
        return all(value is None or math.isfinite(value) for value in (self.loss, self.grad_norm))


@dataclass(frozen=True)
class Replay:
    """What a kept step gives when it is computed again. `same`: loss and gradient norm have the bits they had.

    `parameters`: those whose gradients are not finite, of `trained`. `module`: the first one whose output is not finite
    in the forward pass, if there is one and it can be seen.
    """

    step: int
    loss: float
    grad_norm: float
    same: bool
    rows: tuple[ReplayedRow, ...]  # as they stood in the batches
    parameters: tuple[str, ...]
    trained: int
    module: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no number that is not finite: these are texts."""
        return _plain({**dataclasses.asdict(self), "finite": self.finite})

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay(step: str | Path) -> Replay:
    """Compute a step again that ended a run because its loss or its gradient was not finite.

    `step`: the folder that the error named, or the run's, of which the newest kept step is taken. Weights, features,
    dropout, precision and threads are those of then, so the numbers are too. Nothing is changed, and nothing is read
    but the folder.

        found = replay("runs/a/nonfinite/step-000012")
        [row.place for row in found.rows if not row.finite]

    Raises UsageError "no-kept-step"; CheckpointError "step-unreadable", and for a damaged folder those of `ws.load`.
    """
    folder = _find(Path(step))
    device = _device(folder)
    pipe = load(folder, device=device)
    kept = read_bad_step(folder, pipe.task)
    fields = {field.name for field in dataclasses.fields(pipe.task) if field.init}  # type: ignore[arg-type]
    task = dataclasses.replace(pipe.task, **{name: value for name, value in kept.task.items() if name in fields})  # type: ignore[type-var]
    if kept.class_loss is not None and isinstance(task, WeighsClasses):
        task = task.with_class_loss(kept.class_loss)
    bad = dataclasses.replace(kept.bad, device=device)
    model = pipe.model
    for name, module in model.named_modules():
        module.training = name not in kept.in_eval
    _freeze(model, kept.trained)
    with numerics(device), threads(kept.threads):
        sums = _compute(model, task, bad)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        wrong = tuple(name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
        loss = sums.loss / sums.weight
        norm = finish_gradients(model, sums.weight * bad.scale, None)
        model.zero_grad(set_to_none=True)
        return Replay(
            step=bad.step,
            loss=loss,
            grad_norm=norm,
            same=_same(loss, bad.loss) and (bad.norm is None or _same(norm, bad.norm)),
            rows=tuple(_rows(pipe, task, bad, sums, kept.places)),
            parameters=wrong,
            trained=len(gradients),
            module=_first_module(model, task, bad),
        )


def _find(path: Path) -> Path:
    if (path / STEP).is_file():
        return path
    kept = snapshots(path / FOLDER) if (path / FOLDER).is_dir() else []
    if not kept:
        raise UsageError(
            "no-kept-step",
            "no step is kept here",
            where=str(path),
            fix=f"give the folder that the error named, {FOLDER}/step-… of a run, or the run itself",
        )
    return kept[-1]


def _device(folder: Path) -> str:
    """The device the step was computed on, if this machine has it."""
    device = kept_device(folder)
    try:
        resolve_device(device)
    except UsageError:
        log.warning("the step was computed on %s, which is not here; the last digits may differ", device)
        return "cpu"
    return device


def _freeze(model: torch.nn.Module, trained: frozenset[str]) -> None:
    """Only what was trained gets a gradient. Adapters are merged into a kept step's weights, and have none there."""
    named = dict(model.named_parameters())
    if trained <= named.keys():
        for name, parameter in named.items():
            parameter.requires_grad_(name in trained)
    else:
        log.warning("adapters were trained, which are merged here: gradients are those of the weights they change")


def _compute(model: torch.nn.Module, task: Task, bad: BadStep) -> Sums:
    return add_gradients(
        model,
        task,
        bad.batches,
        seed=bad.seed,
        device=bad.device,
        precision=bad.precision,
        scale=None if bad.scale == 1 else lambda total: total * bad.scale,
    )


def _rows(pipe: Pipeline, task: Task, bad: BadStep, sums: Sums, places: Mapping[int, str]) -> Iterator[ReplayedRow]:
    for batch, losses in zip(bad.batches, sums.losses, strict=True):
        by_row: dict[int, list[int]] = {}
        for position, feature in enumerate(batch.features):
            by_row.setdefault(feature.row, []).append(position)
        each = losses.float().tolist()
        told = len(each) == len(batch.features)  # one loss a feature
        for row, positions in by_row.items():
            features = [batch.features[position] for position in positions]
            yield ReplayedRow(
                row=row,
                place=places.get(row, f"row {row}"),
                loss=sum(each[position] for position in positions) / len(positions) if told else None,
                grad_norm=None if task.couples_rows else _norm_alone(pipe.model, task, bad, features),
                text=_text(pipe, features[0]),
            )


def _norm_alone(model: torch.nn.Module, task: Task, bad: BadStep, features: list[Feature]) -> float:
    alone = dataclasses.replace(bad, batches=(collate(features, task.pads),))
    sums = _compute(model, task, alone)
    norm = finish_gradients(model, max(sums.weight, 1e-12) * bad.scale, None)
    model.zero_grad(set_to_none=True)
    return norm


def _text(pipe: Pipeline, feature: Feature) -> str:
    ids = feature.inputs.get("input_ids")
    if ids is None:
        return ""
    text: str = pipe.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return text if len(text) <= TEXT else text[: TEXT - 1] + "…"


def _first_module(model: torch.nn.Module, task: Task, bad: BadStep) -> str | None:
    """The first module of the model whose output is not finite: the innermost, because it is the first to end."""
    with _watching(model) as found:
        _compute(model, task, bad)
    model.zero_grad(set_to_none=True)
    return found[0] if found else None


@contextmanager
def _watching(model: torch.nn.Module) -> Iterator[list[str]]:
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return look

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
