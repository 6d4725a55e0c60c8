"""Denormals are flushed in every thread that computes for a run, also where the process had its threads before."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from warmstart.training import numerics as subject
from warmstart.training.numerics import numerics

# Rows that no batch touches: after one step with a gradient, `beta1` and `beta2` shrink their moments step by step.
MOMENTS = """
import torch
from warmstart.training.numerics import numerics
torch.set_num_threads(2)
if {threads_before}:
    torch.ones(1 << 20).mul(2)

def kept():
    weight = torch.nn.Parameter(torch.zeros(1 << 20))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.full_like(weight, 1e-18)  # its square is 1e-36, times 0.001 a denormal
    optimizer.step()
    moments = optimizer.state[weight]["exp_avg_sq"]
    return int(((moments.view(torch.int32) != 0) & (moments.abs().view(torch.int32) < 0x00800000)).sum())

with numerics("cpu"):
    during = kept()
print(during, kept())
"""


@pytest.mark.parametrize("threads_before", [False, True])
def test_both_threads_flush_and_both_are_restored(threads_before: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS.format(threads_before=threads_before)],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    during, after = map(int, done.stdout.split())
    assert (during, after) == (0, 1 << 20) and not done.stderr


@pytest.fixture
def denormals_kept() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("denormals_kept")
def test_where_threads_cannot_be_made_anew_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"), numerics("cpu"):
        pass
    assert not caplog.records  # the healthy twin
    monkeypatch.setattr(subject, "_all_threads_flush", lambda on: not on)
    monkeypatch.setattr(subject, "_end_threads", lambda: None)
    with caplog.at_level(logging.WARNING, "warmstart"), numerics("cpu"):
        assert caplog.messages and "in some threads only" in caplog.messages[0]
