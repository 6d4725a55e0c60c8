"""The recipe `loss`: which weights there are, which are refused, and that a run learns by them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

import warmstart as ws
from support.runs import FAST, reviews, weights_sha256
from warmstart.training.class_weights import balanced


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1))
def test_balanced_is_scikit_learns(targets: list[int]) -> None:
    present = np.unique(targets)
    expected = compute_class_weight("balanced", classes=present, y=np.array(targets))
    found = balanced(("a", "b", "c", "d"), np.bincount(targets, minlength=4))
    assert [found["abcd"[i]] for i in present] == pytest.approx(expected)
    assert all(found["abcd"[i]] == 1 for i in set(range(4)) - set(present.tolist()))


def _train(checkpoint: Path, output: Path, loss: Any, rows: Any = None, **call: Any) -> ws.Run:
    config = ws.TrainConfig(epochs=1, loss=loss, **FAST)
    return ws.train(checkpoint, rows or reviews(24), output=output, config=config, **call)


def test_a_run_learns_by_balanced_weights_and_says_and_keeps_them(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*reviews(20)[:12], *reviews(60)[21::2]]
    negative = sum(row["label"] == "NEGATIVE" for row in rows)
    assert 0 < negative < len(rows) / 2
    with caplog.at_level(logging.INFO, logger="warmstart"):
        run = _train(tiny("bert"), tmp_path / "a", ws.Loss(class_weights="balanced"), rows)
    weights = {"NEGATIVE": len(rows) / 2 / negative, "POSITIVE": len(rows) / 2 / (len(rows) - negative)}
    assert "labels weigh NEGATIVE" in caplog.text
    assert json.loads((run.path / "provenance.json").read_text())["label_weights"] == pytest.approx(weights)
    explicit = _train(tiny("bert"), tmp_path / "b", ws.Loss(class_weights=weights), rows)
    assert weights_sha256(explicit) == weights_sha256(run)
    plain = _train(tiny("bert"), tmp_path / "c", None, rows)
    assert weights_sha256(plain) != weights_sha256(run)
    assert run.pipeline.task.class_loss is None  # type: ignore[attr-defined]  # what is evaluated and used afterwards has the plain loss


def test_smoothing_keeps_a_run_from_certainty(tiny: Callable[..., Path], tmp_path: Path) -> None:
    texts = [row["text"] for row in reviews(24)]
    config = {"epochs": 20, **FAST}

    def surest(name: str, loss: ws.Loss | None) -> float:
        run = ws.train(tiny("bert"), reviews(24), output=tmp_path / name, config=ws.TrainConfig(loss=loss, **config))
        return max(prediction.score for prediction in run.pipeline(texts))

    assert surest("smooth", ws.Loss(label_smoothing=0.3)) < 0.93 < surest("plain", None)


@pytest.mark.parametrize(
    ("task", "rows", "loss", "code"),
    [
        (None, reviews(8), ws.Loss(class_weights={"POSITVE": 2.0}), "class-weight-unknown"),
        (None, [{"text": "a", "label": i / 7} for i in range(8)], ws.Loss(label_smoothing=0.1), "loss-unsupported"),
        ("fill-mask", [{"text": "a good film"}], ws.Loss(label_smoothing=0.1), "loss-unsupported"),
    ],
)
def test_what_cannot_be_weighed_is_refused_before_anything_is_written(
    task: str | None, rows: Any, loss: ws.Loss, code: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = tiny("bert", "masks" if task else "classification")
    with pytest.raises(ws.UsageError) as caught:
        _train(checkpoint, tmp_path / "r", loss, rows, task=task)
    assert caught.value.code == code and not (tmp_path / "r").exists()
    assert code != "class-weight-unknown" or "POSITIVE" in caught.value.fix
