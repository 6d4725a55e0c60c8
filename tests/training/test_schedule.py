"""How many steps a run has, where its epochs end, and the learning rate in each step."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule
from warmstart.training.optimizers import default_learning_rate, rate_at, scheduler


class Planned:
    """Stands in for `Batches`: an epoch of so many batches; remembers which epochs were planned."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts
        self.asked: list[int] = []

    def plan_of(self, epoch: int) -> list[list[int]]:
        self.asked.append(epoch)
        return [[0]] * self.counts[min(epoch, len(self.counts) - 1)]


def _schedule(*counts: int, **config: Any) -> Schedule:
    return Schedule.of(Planned(*counts), TrainConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "per_epoch", "total"),
    [
        ({"epochs": 1}, (10,), 10),
        ({"epochs": 3}, (10, 10, 10), 30),
        ({"epochs": 0.5}, (10,), 5),
        ({"epochs": 1.1}, (10, 10), 11),  # 1.1 - 1 is 0.10000000000000009
        ({"epochs": 2.25}, (10, 10, 10), 23),
        ({"epochs": 1e-7}, (10,), 1),
        ({"epochs": 1, "accumulate": 4}, (3,), 3),
        ({"epochs": 1.5, "accumulate": 4}, (3, 3), 5),
        ({"epochs": 1, "accumulate": 1000}, (1,), 1),
        ({"epochs": 3, "max_steps": 12}, (10, 10), 12),
        ({"epochs": 1, "max_steps": 12}, (10,), 10),
        ({"epochs": 0.5, "max_steps": 3}, (10,), 3),
    ],
)
def test_steps_of_a_run(config: dict[str, Any], per_epoch: tuple[int, ...], total: int) -> None:
    assert _schedule(10, **config) == Schedule(per_epoch, total)


def test_epochs_may_differ_in_length() -> None:
    assert _schedule(7, 9, 8, epochs=3) == Schedule((7, 9, 8), 24)


def test_epochs_beyond_max_steps_are_not_even_planned() -> None:
    planned = Planned(10)
    assert Schedule.of(planned, TrainConfig(epochs=10_000, max_steps=15)).total == 15  # type: ignore[arg-type]
    assert planned.asked == [0, 1]


def test_evaluation_is_due_at_the_end_of_epochs_or_every_so_many_steps_and_at_the_last() -> None:
    schedule = _schedule(4, epochs=2.5)
    assert [step for step in range(1, 11) if schedule.evaluation_due(step, None)] == [4, 8, 10]
    assert [step for step in range(1, 11) if schedule.evaluation_due(step, 3)] == [3, 6, 9, 10]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("cosine", [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))]),
    ],
)
def test_rates_of_ten_steps_with_two_of_warm_up(schedule: str, expected: list[float]) -> None:
    rates = [rate_at(step, total=10, warmup=0.2, schedule=schedule) for step in range(10)]
    assert rates == pytest.approx(expected)


@given(
    total=st.integers(1, 400),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
)
def test_the_rate_rises_to_its_peak_once_and_never_stands_at_zero(total: int, warmup: float, schedule: str) -> None:
    rates = [rate_at(step, total=total, warmup=warmup, schedule=schedule) for step in range(total)]
    peak = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert all(a < b for a, b in pairwise(rates[: peak + 1]))
    assert all(a >= b for a, b in pairwise(rates[peak:]))
    assert peak == min(math.ceil(warmup * total), total - 1)
    if peak < total - 1:
        assert rates[peak] == 1


def test_the_scheduler_gives_the_optimizer_these_rates() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    made = scheduler(optimizer, TrainConfig(warmup=0.25, schedule="cosine"), 8)
    seen = []
    for _ in range(8):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    assert seen == pytest.approx([0.5 * rate_at(k, total=8, warmup=0.25, schedule="cosine") for k in range(8)])


def test_the_default_rate_follows_the_width() -> None:
    assert default_learning_rate(384) == pytest.approx(1.04e-4, rel=1e-2)
    assert default_learning_rate(1024) < default_learning_rate(768) < default_learning_rate(384)
