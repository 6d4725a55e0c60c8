"""The loss with class weights and label smoothing is torch's own, however a batch is cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import warmstart as ws
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.rows import Row
from warmstart.tasks import Task
from warmstart.tasks.class_loss import IGNORED, ClassLoss

weight = st.floats(0.01, 100)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(2, 5), st.floats(0, 0.9), st.data())
def test_it_is_torchs_cross_entropy(rows: int, labels: int, smoothing: float, data: st.DataObject) -> None:
    weights = tuple(data.draw(st.lists(weight, min_size=labels, max_size=labels)))
    logits = torch.randn(rows, labels, generator=torch.Generator().manual_seed(rows), dtype=torch.float64)
    targets = torch.tensor(data.draw(st.lists(st.integers(-1, labels - 1), min_size=rows, max_size=rows)))
    targets[0] = 0  # not all ignored
    targets[targets < 0] = IGNORED
    losses, found = ClassLoss(weights, smoothing).loss(logits, targets)
    expected = F.cross_entropy(logits, targets, weight=logits.new_tensor(weights), label_smoothing=smoothing)
    torch.testing.assert_close(losses.sum() / found.sum(), expected)


def test_half_precision_is_summed_in_full() -> None:
    losses, weights = ClassLoss((0.1, 1.7)).loss(torch.randn(500, 2).bfloat16(), torch.tensor([0, 1] * 250))
    assert losses.dtype == weights.dtype == torch.float32
    assert weights.sum().item() == pytest.approx(450, rel=1e-5)


ROWS: dict[str, tuple[tuple[str, ...], list[Row]]] = {
    "text-classification": (
        ("NEGATIVE", "POSITIVE"),
        [
            Row({"text": "good", "label": "POSITIVE"}),
            Row({"text": "bad " * 40, "label": "NEGATIVE"}),
            Row({"text": "good film", "label": "POSITIVE"}),
        ],
    ),
    "token-classification": (
        ("O", "B-PER", "I-PER"),
        [
            Row({"tokens": ["good", "bad", "sad"], "tags": ["B-PER", "I-PER", "O"]}),
            Row({"tokens": ["I"], "tags": ["O"]}),
            Row({"tokens": ["fun"] * 30, "tags": ["B-PER"] + ["I-PER"] * 10 + ["O"] * 19}),
        ],
    ),
}


def _task(tiny: Callable[..., Path], name: str) -> Task:
    labels, _ = ROWS[name]
    head = "tokens" if name == "token-classification" else "classification"
    options = {"long_text": "windows", "max_length": 16, "stride": 4}
    return ws.load(tiny("bert", head, labels=labels), task=name, options=options).task


def _logits(features: Any, task: Any) -> torch.Tensor:
    """Logits that are functions of the feature, so that any batch has the same."""
    longest = max(feature.length for feature in features)
    rows = []
    for feature in features:
        seed = torch.Generator().manual_seed(feature.row * 100 + feature.part)
        tokens = longest if task.name.startswith("token") else 1
        rows.append(torch.randn(64, len(task.labels), generator=seed)[:tokens])
    stacked = torch.stack(rows)
    return stacked if task.name.startswith("token") else stacked[:, 0]


@pytest.mark.parametrize("name", ROWS)
def test_a_task_gives_torchs_loss_in_one_batch_and_in_parts(tiny: Callable[..., Path], name: str) -> None:
    labels, rows = ROWS[name]
    weights = tuple(0.5 + i for i in range(len(labels)))
    task: Any = _task(tiny, name)
    task = task.with_class_loss(ClassLoss(weights, 0.1))
    features = list(task.encode(rows, train=True))
    assert len(features) > len(rows)  # windows

    def sums(parts: list[list[Any]]) -> torch.Tensor:
        total, weight = torch.zeros(()), torch.zeros(())
        for part in parts:
            batch = to_tensors(collate(part, task.pads), "cpu")
            losses, found = task.loss({"logits": _logits(part, task)}, batch)
            assert losses.shape == found.shape == (len(part),)
            total, weight = total + (losses * found).sum(), weight + found.sum()
        return total / weight

    whole = sums([features])
    torch.testing.assert_close(sums([[feature] for feature in features]), whole, rtol=1e-4, atol=1e-6)
    batch = to_tensors(collate(features, task.pads), "cpu")
    logits, targets = _logits(features, task).flatten(0, -2), batch.targets["labels"].flatten()
    each = F.cross_entropy(
        logits, targets, weight=torch.tensor(weights), label_smoothing=0.1, reduction="none", ignore_index=IGNORED
    )
    of_target = torch.tensor(weights)[targets.clamp(min=0)] * (targets != IGNORED)
    pieces = torch.ones(len(targets))
    if name == "text-classification":
        pieces = torch.tensor([float(feature.meta["pieces"]) for feature in features])
    torch.testing.assert_close(whole, (each / pieces).sum() / (of_target / pieces).sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_equal_weights_change_nothing(tiny: Callable[..., Path], name: str) -> None:
    labels, rows = ROWS[name]
    task: Any = _task(tiny, name)
    features = list(task.encode(rows, train=True))
    batch, outputs = to_tensors(collate(features, task.pads), "cpu"), {"logits": _logits(features, task)}
    plain, weighed = (
        task.loss(outputs, batch),
        task.with_class_loss(ClassLoss((1.0,) * len(labels))).loss(outputs, batch),
    )
    for one, other in zip(plain, weighed, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_are_counted_by_row_and_by_word(tiny: Callable[..., Path]) -> None:
    text, tokens = (_task(tiny, name) for name in ROWS)
    every = [list(task.encode(ROWS[task.name][1], train=True)) for task in (text, tokens)]
    assert text.count_labels(every[0]).tolist() == [1, 2]  # type: ignore[attr-defined]
    assert tokens.count_labels(every[1]).tolist() == [21, 2, 11]  # type: ignore[attr-defined]


@pytest.mark.parametrize("problem", ["multi", "regression"])
def test_what_has_no_single_label_is_refused(tiny: Callable[..., Path], problem: str) -> None:
    task: Any = dataclasses.replace(_task(tiny, "text-classification"), problem=problem)  # type: ignore[type-var]
    for call in (lambda: task.with_class_loss(ClassLoss((1.0, 2.0))), lambda: task.count_labels([])):
        with pytest.raises(ws.UsageError) as caught:
            call()
        assert caught.value.code == "loss-unsupported" and caught.value.value == problem


def test_scores_know_nothing_of_it(tiny: Callable[..., Path]) -> None:
    """Evaluation losses stay unweighted: they are computed from predictions."""
    task: Any = _task(tiny, "text-classification")
    rows = ROWS[task.name][1]
    prediction = task.prediction("POSITIVE", 0.9, {"NEGATIVE": 0.1, "POSITIVE": 0.9}, 3, False)
    weighed = task.with_class_loss(ClassLoss((9.0, 0.1), 0.5))
    assert SimpleNamespace(**task.score([prediction] * 3, rows).per_example).loss.tolist() == (
        weighed.score([prediction] * 3, rows).per_example["loss"].tolist()
    )
