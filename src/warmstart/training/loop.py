"""The training loop, to be read from top to bottom.

For each optimizer step: some micro-batches forward and backward, each adding the gradient of its weighted sum of
losses; then one division by the sum of all weights, one clip, one update. So `accumulate` changes memory and nothing
else: `B×1` and `1×B` give the same gradient for any task, whatever its losses weigh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from warmstart.errors import TrainingError, is_out_of_memory
from warmstart.features import Batch
from warmstart.randomness import derive
from warmstart.tasks import Task
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.fetching import fetching
from warmstart.training.gradients import Sums, add_gradients
from warmstart.training.memory import Cuts, exhausted, release
from warmstart.training.nonfinite import BadStep
from warmstart.training.numerics import numerics

# Fractions of epochs are floats: 1.1 epochs of 10 steps are 11 steps, although 1.1 - 1 is a little more than a tenth.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Step:
    """One optimizer step, as `metrics.jsonl` keeps it. `loss` is the weighted mean; `seconds` are the step's own."""

    step: int  # from 1
    epoch: float  # passes over the rows after this step
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    rows: int
    seconds: float
    parts: int = 1  # into which each micro-batch was cut, because memory did not hold it


@dataclass
class Guards:
    """What a run does about steps that cannot be made as they are.

    `cuts`: how finely micro-batches are cut since memory ran out. `scaler`: scales the loss under fp16, less from the
    step on whose gradient overflows; no step is left out. `keep`: keeps a step that is not finite, and gives the error
    that ends the run.
    """

    cuts: Cuts = field(default_factory=Cuts)
    scaler: torch.amp.GradScaler | None = None
    keep: Callable[[BadStep], TrainingError] = BadStep.error


@dataclass(frozen=True)
class Schedule:
    """How many optimizer steps there are, and in which of them an epoch ends."""

    per_epoch: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, batches: Batches[Batch], config: TrainConfig) -> Schedule:
        """Plans no epoch that `max_steps` leaves out. An epoch begun by a fraction has that share of its steps."""
        per_epoch: list[int] = []
        total, left = 0, config.epochs
        while not total or (left > _ROUNDING and (config.max_steps is None or total < config.max_steps)):
            steps = math.ceil(len(batches.plan_of(len(per_epoch))) / config.accumulate)
            per_epoch.append(steps)
            total += max(1, math.ceil(steps * min(left, 1.0) - _ROUNDING))
            left -= 1
        return cls(tuple(per_epoch), min(total, config.max_steps or total))

    def evaluation_due(self, step: int, every: int | None) -> bool:
        """Does validation follow step `step`: every so many steps (None: at each epoch's end), and at the last."""
        return step == self.total or (step % every == 0 if every else step in accumulate(self.per_epoch))


def fit(
    model: torch.nn.Module,
    task: Task,
    batches: Batches[Batch],
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    *,
    device: str,
    schedule: Schedule,
    after_step: Callable[[Step], bool],
    start: int = 0,
    guards: Guards | None = None,
) -> None:
    """Train `model` in place. `after_step` sees every step, may evaluate and save, and ends the run by True.

    `start`: the steps that `model`, `optimizer` and `scheduler` have behind them; the batches of these are not made.

    Raises TrainingError "loss-not-finite" before the optimizer could spread a non-finite gradient, "memory-exhausted",
    "batch-failed", "worker-lost".
    """
    guards = guards or Guards()
    done = first = 0  # `first`: the steps before this epoch
    with numerics(device):
        for epoch, steps in enumerate(schedule.per_epoch):
            last = min(first + steps, schedule.total)
            done = max(done, min(start, last))
            if done == last:
                first = last
                continue
            with fetching(batches, epoch, (done - first) * config.accumulate, config.workers) as loader:
                for position in range(done - first, last - first):
                    started = time.monotonic()
                    micro_batches = list(islice(loader, config.accumulate))
                    model.train()
                    loss, norm = _gradient(
                        model, task, micro_batches, config, optimizer, guards, step=done + 1, device=device
                    )
                    rate = scheduler.get_last_lr()[0]
                    _update(optimizer, guards.scaler, done + 1)
                    if not isinstance(scheduler, ReduceLROnPlateau):  # that one is stepped by who evaluates
                        scheduler.step()
                    optimizer.zero_grad(set_to_none=True)
                    done += 1
                    at = epoch + (position + 1) / steps
                    rows = sum(len({feature.row for feature in batch.features}) for batch in micro_batches)
                    tokens = sum(batch.tokens for batch in micro_batches)
                    seconds = time.monotonic() - started
                    parts = guards.cuts.parts_at(done)
                    if after_step(Step(done, at, loss, rate, norm, tokens, rows, seconds, parts)):
                        return
            first = last


def check_finite(model: torch.nn.Module, step: int) -> None:
    """Raises TrainingError "weights-not-finite": finite gradients at too high a rate can still ruin the weights."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise TrainingError(
                "weights-not-finite",
                f"the weights were no longer finite after step {step}; nothing is saved from them",
                where=f"step {step}",
                value=name,
                fix="lower learning_rate; earlier weights stand in checkpoints/, if the run has saved any",
            )


def _gradient(
    model: torch.nn.Module,
    task: Task,
    micro_batches: Sequence[Batch],
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    guards: Guards,
    *,
    step: int,
    device: str,
) -> tuple[float, float]:
    """Leave a step's mean gradient, clipped, on the parameters; returns the mean loss and the gradient's norm.

    It is computed again, cut finer or scaled less, until memory and fp16 hold it.
    """
    # Dropout is a function of (seed, step): a resumed run needs no generator state.
    seed, scaler = derive(config.seed, "dropout", step - 1), guards.scaler
    while True:
        pieces = guards.cuts.apply(micro_batches, step, task.pads)
        scale = 1.0 if scaler is None else scaler.get_scale()
        sums: Sums | None = None
        try:
            sums = add_gradients(
                model, task, pieces, seed=seed, device=device, precision=config.precision, scale=scaler and scaler.scale
            )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if sums is None:  # not within the handler, whose traceback holds on to what fills the memory
            optimizer.zero_grad(set_to_none=True)
            release(device)
            guards.cuts.halve(step, pieces, task)
            continue
        loss, norm = sums.loss / sums.weight, math.nan
        if math.isfinite(loss):
            if scaler is not None:
                scaler.unscale_(optimizer)
            norm = finish_gradients(model, sums.weight, config.clip)
            if math.isfinite(norm):
                return loss, norm
            if scaler is not None and scale > 1:
                scaler.step(optimizer)  # makes no step, and `update` lowers the scale
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                continue
        overflown = math.isfinite(loss)
        raise guards.keep(
            BadStep(step, loss, norm if overflown else None, tuple(pieces), seed, device, config.precision, scale)
        )


def _update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, step: int) -> None:
    try:
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise exhausted(  # some weights may have moved, so nothing is tried again
            step,
            f"the state of {type(optimizer).__name__} does not fit",
            "give an optimizer with less state (ws.train(optimizer=…)), or train a smaller model",
        ) from None


def finish_gradients(model: torch.nn.Module, weight: float, clip: float | None) -> float:
    """Turn summed gradients into mean ones and clip them, in one pass; returns the mean gradient's norm before it."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(_without_zero_rows(model)).item() / weight
    factor = 1.0 if clip is None or norm <= clip else clip / norm
    torch._foreach_mul_(gradients, factor / weight)
    return norm


def _without_zero_rows(model: torch.nn.Module) -> list[torch.Tensor]:
    """The gradients as their norm is taken. Of a table of embeddings, the norms of those rows that some token looked
    up: so the norm has the same bits whether the other rows are there or left out (`training/vocabulary.py`)."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding) and not m.sparse}
    found = []
    for parameter in model.parameters():
        if (gradient := parameter.grad) is not None:
            if id(parameter) in tables:
                rows = torch.linalg.vector_norm(gradient, dim=1)
                gradient = rows[rows != 0]
            found.append(gradient)
    return found


def not_finite(what: str, step: int, value: float) -> TrainingError:
    """The error of a run whose numbers left the finite ones: "loss-not-finite"."""
    return TrainingError(
        "loss-not-finite",
        f"the {what} became {value} in step {step}; nothing is saved from there",
        where=f"step {step}",
        value=value,
        fix="lower learning_rate, set clip, or look for extreme values in the rows",
    )
