"""The training loop, to be read from top to bottom.

For each optimizer step: some micro-batches forward and backward, each adding the gradient of its weighted sum of
losses; then one division by the sum of all weights, one clip, one update. So `accumulate` changes memory and nothing
else: `B×1` and `1×B` give the same gradient for any task, whatever its losses weigh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice

import torch

from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import TrainingError
from warmstart.features import Batch
from warmstart.randomness import derive
from warmstart.tasks import Task
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.fetching import fetch

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
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    device: str,
    schedule: Schedule,
    after_step: Callable[[Step], bool],
    start: int = 0,
) -> None:
    """Train `model` in place. `after_step` sees every step, may evaluate and save, and ends the run by True.

    `start`: the steps that `model`, `optimizer` and `scheduler` have behind them; the batches of these are not made.

    Raises TrainingError "loss-not-finite" before the optimizer could spread a non-finite gradient.
    """
    done = first = 0  # `first`: the steps before this epoch
    with _numerics(device):
        for epoch, steps in enumerate(schedule.per_epoch):
            last = min(first + steps, schedule.total)
            done = max(done, min(start, last))
            if done == last:
                first = last
                continue
            loader = fetch(batches, epoch, (done - first) * config.accumulate, config.workers)
            for position in range(done - first, last - first):
                started = time.monotonic()
                micro_batches = list(islice(loader, config.accumulate))
                model.train()
                # Dropout is a function of (seed, step): a resumed run needs no generator state.
                torch.manual_seed(derive(config.seed, "dropout", done))
                loss, weight = 0.0, 0.0
                for batch in micro_batches:
                    loss_sum, weight_sum = _backward(model, task, to_tensors(batch, device), config.precision)
                    loss, weight = loss + loss_sum, weight + weight_sum
                if not math.isfinite(loss):
                    raise not_finite("loss", done + 1, loss)
                norm = _finish_gradients(model, weight, config.clip)
                if not math.isfinite(norm):
                    raise not_finite("gradient norm", done + 1, norm)
                rate = scheduler.get_last_lr()[0]
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                at = epoch + (position + 1) / steps
                rows = sum(len({feature.row for feature in batch.features}) for batch in micro_batches)
                tokens = sum(batch.tokens for batch in micro_batches)
                seconds = time.monotonic() - started
                if after_step(Step(done, at, loss / weight, rate, norm, tokens, rows, seconds)):
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


def _backward(model: torch.nn.Module, task: Task, batch: Batch, precision: str) -> tuple[float, float]:
    """Add this micro-batch's gradient of the weighted sum of losses; returns that sum and the sum of weights."""
    device = next(iter(batch.inputs.values())).device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
        outputs = task.forward(model, batch)
        losses, weights = task.loss(outputs, batch)
    total = (losses.float() * weights).sum()
    total.backward()
    return total.item(), weights.sum().item()


def _finish_gradients(model: torch.nn.Module, weight: float, clip: float | None) -> float:
    """Turn summed gradients into mean ones and clip them, in one pass; returns the mean gradient's norm before it."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item() / weight
    factor = 1.0 if clip is None or norm <= clip else clip / norm
    torch._foreach_mul_(gradients, factor / weight)
    return norm


@contextmanager
def _numerics(device: str) -> Iterator[None]:
    """The numeric setting of a run; what the process had before is restored after it.

    AdamW's moments of rows that no batch touches decay into denormals, which a CPU computes some 40 times slower;
    flushing them to zero changes only values below 1.2e-38.
    """
    before = _flushes_denormals()
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    """Torch can set this, and not say it: divide the smallest normal number and see."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    return bool((smallest / 4 == 0).item())


def not_finite(what: str, step: int, value: float) -> TrainingError:
    """The error of a run whose numbers left the finite ones: "loss-not-finite"."""
    return TrainingError(
        "loss-not-finite",
        f"the {what} became {value} in step {step}; nothing is saved from there",
        where=f"step {step}",
        value=value,
        fix="lower learning_rate, set clip, or look for extreme values in the rows",
    )
