"""bf16 and fp16 on a CPU: only where they are measured to be faster, before the first step.

Whether a CPU gains by them depends on its vector units, on the model and on the lengths of texts, and no table says it.
So the run's own first batch goes forward and backward in both precisions. What comes of it stands in the run's record,
and a resumed run measures nothing: it computes as the run was begun.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from warmstart.errors import is_out_of_memory
from warmstart.features import Batch
from warmstart.randomness import derive
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig
from warmstart.training.gradients import add_gradients
from warmstart.training.numerics import numerics

log = logging.getLogger("warmstart")

ROUNDS = 4  # in turn, of which the first warms, and counts only where it was the only one
SECONDS = 10.0  # after which no further round is begun: fp16 may be fifteen times slower


@dataclass(frozen=True)
class Measured:
    """The precision that was asked for and the one a run computes in. `seconds`: by precision, the median of a batch
    forward and backward; empty where memory did not hold one, and what was asked for is used."""

    asked: str
    used: str
    seconds: Mapping[str, float] = field(default_factory=dict)

    def say(self) -> None:
        """Warn of the precision that is not used, with both figures."""
        times = ", ".join(f"{seconds:.3g} s in {precision}" for precision, seconds in self.seconds.items())
        if self.used != self.asked:
            what = "%s is no faster on this CPU: a batch takes %s; the run computes in %s"
            log.warning(what, self.asked, times, self.used)
        else:
            log.info("computing in %s: a batch takes %s", self.used, times or "more than memory holds")


def is_measured(config: TrainConfig, device: str) -> bool:
    """Whether the precision that is asked for has to prove the faster one: on a CPU."""
    return config.precision != "fp32" and torch.device(device).type == "cpu"


def measure(model: torch.nn.Module, batches: Batches[Batch], config: TrainConfig, *, device: str) -> Measured:
    """Time the first batch in float32 and in `config.precision`. Weights, modes and generators stay as they were."""
    asked, batch = config.precision, batches[0]
    taken: dict[str, list[float]] = {"fp32": [], asked: []}
    modes = {module: module.training for module in model.modules()}
    try:
        with numerics(device):
            model.train()
            started = time.monotonic()
            for done in range(ROUNDS):
                if time.monotonic() - started > SECONDS:
                    break
                for precision in sorted(taken, reverse=done % 2 == 1):
                    taken[precision].append(_seconds(model, batches, batch, config, precision, device))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return Measured(asked, asked)  # the loop cuts the batch, which it may have to less in low precision
    finally:
        model.zero_grad(set_to_none=True)
        for module, training in modes.items():
            module.training = training
    seconds = {precision: statistics.median(times[1:] or times) for precision, times in taken.items()}
    return Measured(asked, asked if seconds[asked] < seconds["fp32"] else "fp32", seconds)


def _seconds(
    model: torch.nn.Module, batches: Batches[Batch], batch: Batch, config: TrainConfig, precision: str, device: str
) -> float:
    began = time.perf_counter()
    add_gradients(
        model, batches.task, [batch], seed=derive(config.seed, "dropout", 0), device=device, precision=precision
    )
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds


def recorded(values: Mapping[str, Any], config: TrainConfig) -> Measured | None:
    """What a run's provenance says was measured for this setting, if it does."""
    found = values.get("precision")
    if not isinstance(found, dict) or found.get("asked") != config.precision:
        return None
    if found.get("used") not in ("fp32", config.precision):
        return None
    return Measured(found["asked"], found["used"], found.get("seconds", {}))
