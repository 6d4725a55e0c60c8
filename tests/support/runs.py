"""Rows that a tiny model learns within a second, and a run over them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import warmstart as ws

GOOD = ("good", "great", "wonderful", "warm", "love", "fun", "happy")
BAD = ("bad", "sad", "dull", "tired", "worst", "never", "cast")
# A rate at which a model of 32 units learns these rows in some thirty steps.
FAST = {"batch_size": 8, "learning_rate": 5e-3, "warmup": 0.1}


def reviews(count: int, *, seed: int = 0, labels: Sequence[str] = ("NEGATIVE", "POSITIVE")) -> list[dict[str, Any]]:
    """`count` different texts of unequal lengths, half of each label."""
    rng = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        words, label = ((BAD, GOOD)[len(rows) % 2], labels[len(rows) % 2])
        filler = " ".join(rng.choices(("the", "film", "is", "story", "and", "plot"), k=rng.randint(1, 9)))
        rows.setdefault(f"{filler} {rng.choice(words)} and {rng.choice(words)} {rng.randint(0, 99)}", label)
    return [{"text": text, "label": label} for text, label in rows.items()]


def train_reviews(checkpoint: Path, output: Path, **config: Any) -> ws.Run:
    """A run over sixty reviews, validated on twenty others."""
    rows = reviews(80)
    settings = {"epochs": 4, **FAST, **config}
    return ws.train(checkpoint, rows[:60], output=output, validation=rows[60:], config=ws.TrainConfig(**settings))


def weights_sha256(run: ws.Run) -> str:
    """The hash of a run's saved weights."""
    return hashlib.sha256((run.model / "model.safetensors").read_bytes()).hexdigest()


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every dropout's probability at 0, so that gradients are functions of the rows alone."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def assert_same(ours: Sequence[Any], others: Sequence[Any]) -> None:
    """The same labels, and scores equal but for rounding: weights at another address may be summed in another order."""
    assert [one.label for one in ours] == [other.label for other in others]
    for one, other in zip(ours, others, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
        assert (one.tokens, one.truncated, one.flags) == (other.tokens, other.truncated, other.flags)


def low_precision_takes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """On this CPU a batch takes one second in float32, and so many in bf16 or fp16, whoever measures it."""
    from warmstart.training import precision

    def fixed(model: Any, batches: Any, batch: Any, config: Any, asked: str, device: str) -> float:
        return 1.0 if asked == "fp32" else seconds

    monkeypatch.setattr(precision, "_seconds", fixed)
