"""Batches for a loop of one's own: what stands in them, for whom, and that a model learns from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import warmstart as ws
from support.runs import reviews
from warmstart.rows import texts
from warmstart.tasks import Task
from warmstart.training.batches import make_batches

ROWS = reviews(50)


@pytest.fixture(scope="module")
def task(tiny: Callable[..., Path]) -> Task:
    return ws.load(tiny("bert")).task


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _texts(made: Any) -> list[tuple[int, ...]]:
    """Each row of every batch by its token ids, padding left out."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in made
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def test_an_epoch_has_each_row_once_and_another_epoch_another_order(task: Task) -> None:
    made = ws.batches(ROWS, task, batch_size=8, max_tokens=None)
    first, again = _texts(made), _texts(made)
    assert first == again and len(made) == math.ceil(50 / 8) and len(set(first)) == len(first) == 50
    made.set_epoch(1)
    second = _texts(made)
    assert second != first and sorted(second) == sorted(first)
    made.set_epoch(0)
    assert _texts(made) == first
    assert _texts(ws.batches(ROWS, task, batch_size=8, max_tokens=None, seed=1)) != first


@pytest.mark.parametrize("budget", [40, 64, 200])
def test_a_batch_holds_at_most_its_tokens_padding_counted(task: Task, budget: int) -> None:
    made = ws.batches(ROWS, task, max_tokens=budget)
    assert all(batch["input_ids"].numel() <= budget for batch in made)
    assert len(_texts(made)) == 50
    limited = ws.batches(ROWS, task, max_tokens=budget, batch_size=3)
    assert all(len(batch["labels"]) <= 3 and batch["input_ids"].numel() <= budget for batch in limited)
    assert sorted(_texts(limited)) == sorted(_texts(made))


def test_a_row_longer_than_the_budget_goes_alone(task: Task) -> None:
    rows = [*ROWS[:6], {"text": "wonderful story " * 40, "label": "POSITIVE"}]
    sizes = [batch["input_ids"].shape for batch in ws.batches(rows, task, max_tokens=30)]
    assert [shape for shape in sizes if shape[1] > 30] == [torch.Size([1, 82])]


def test_rows_of_like_length_stand_together(task: Task) -> None:
    rows = reviews(400)
    together = sum(batch["input_ids"].numel() for batch in ws.batches(rows, task, batch_size=16, max_tokens=None))
    real = sum(len(ids) for ids in _texts(ws.batches(rows, task, batch_size=16, max_tokens=None)))
    assert together / real < 1.05


def test_all_windows_of_a_row_stand_in_one_batch(tiny: Callable[..., Path]) -> None:
    options = {"long_text": "windows", "max_length": 12, "stride": 2}
    task = ws.load(tiny("bert"), options=options).task
    rows = [
        {"text": " ".join(["good"] * (5 + 9 * (n % 4))), "label": ("NEGATIVE", "POSITIVE")[n % 2]} for n in range(12)
    ]
    made = make_batches(task, list(texts(rows)), seed=0, batch_size=5, max_tokens=None)
    seen: dict[int, int] = {}
    for position, batch in enumerate(made):
        for feature in batch.features:
            assert seen.setdefault(feature.row, position) == position
    assert len(seen) == 12 and sum(len(batch) for batch in made) > 12


@pytest.mark.parametrize(
    ("labels", "problem", "values", "dtype", "shape"),
    [
        (("NEGATIVE", "POSITIVE"), "single", ["POSITIVE", "NEGATIVE", "POSITIVE"], torch.int64, (3,)),
        (("a", "b", "c"), "multi", [["a"], ["b", "c"], []], torch.float32, (3, 3)),
        (("stars",), "regression", [1.5, "2", 3], torch.float32, (3,)),
    ],
)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_model_takes_them_and_gives_a_loss(
    tiny: Callable[..., Path],
    family: str,
    labels: tuple[str, ...],
    problem: str,
    values: list[Any],
    dtype: torch.dtype,
    shape: tuple[int, ...],
) -> None:
    pipe = ws.load(tiny(family), task="text-classification", labels=labels)
    task = dataclasses.replace(pipe.task, problem=problem)
    pipe.model.config.problem_type = task.head()["problem_type"]
    rows = [{"text": f"good film {n}", "label": value} for n, value in enumerate(values)]
    [batch] = ws.batches(rows, task)
    assert batch["labels"].dtype == dtype and batch["labels"].shape == shape
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    loss = pipe.model(**batch).loss
    assert loss.ndim == 0 and torch.isfinite(loss)
    for size in (1, 2):  # a batch of one row too
        assert all(torch.isfinite(pipe.model(**part).loss) for part in ws.batches(rows, task, batch_size=size))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(task: Task, workers: int) -> None:
    made = ws.batches(ROWS, task, batch_size=8, max_tokens=None, seed=3)
    for epoch in (0, 1):
        made.set_epoch(epoch)
        plain = list(DataLoader(made, batch_size=None))
        fetched = list(DataLoader(made, batch_size=None, num_workers=workers))
        assert len(plain) == len(made) == len(fetched)
        assert all(_same(one, other) for one, other in zip(plain, fetched, strict=True))


def test_a_loop_of_ones_own_learns_and_its_checkpoint_loads_in_transformers(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """A person's own SGD, LambdaLR and DataLoader; saved by plain save_pretrained. A model without a padding token."""
    torch.manual_seed(0)
    pipe = ws.load(tiny("gpt2", "base"), task="text-classification", labels=["NEGATIVE", "POSITIVE"])
    made = ws.batches(reviews(64), pipe.task, max_tokens=256, seed=0)
    loader = DataLoader(made, batch_size=None)
    optimizer = torch.optim.SGD(pipe.model.parameters(), lr=0.03, momentum=0.9)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.995**step)
    losses = []
    pipe.model.train()
    for epoch in range(15):
        made.set_epoch(epoch)
        for batch in loader:
            loss = pipe.model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(pipe.model.parameters(), 1.0)
            optimizer.step()
            decay.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    pipe.model.eval()
    pipe.model.save_pretrained(tmp_path / "mine")
    pipe.tokenizer.save_pretrained(tmp_path / "mine")
    samples = ["a great film", "the worst plot"]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mine")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "mine")(samples, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = [plain.config.id2label[i] for i in plain(**inputs).logits.argmax(-1).tolist()]
    assert found == [prediction.label for prediction in pipe(samples)] == ["POSITIVE", "NEGATIVE"]
    assert [p.label for p in ws.load(tmp_path / "mine")(samples)] == found


def test_rows_come_from_files_too_and_columns_can_be_pinned(task: Task, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("kind,body\npositive,good film\nnegative,sad film\n")
    [batch] = ws.batches(file, task, columns={"text": "body", "label": "kind"})
    assert sorted(batch["labels"].tolist()) == [0, 1]


@pytest.mark.parametrize("limits", [{"batch_size": 0}, {"batch_size": -3}, {"max_tokens": 0}])
def test_r77_a_limit_below_one_is_refused(task: Task, limits: dict[str, int]) -> None:
    with pytest.raises(ws.UsageError) as caught:
        ws.batches(ROWS, task, **limits)
    assert caught.value.code == "batch-limit" and next(iter(limits)) in str(caught.value)
    assert caught.value.where.field == next(iter(limits)) and caught.value.value == next(iter(limits.values()))


def test_r77_a_batch_larger_than_the_data_is_all_of_it(task: Task) -> None:
    [batch] = ws.batches(ROWS, task, batch_size=10_000, max_tokens=None)
    assert len(batch["labels"]) == 50
    [whole] = ws.batches(ROWS, task, batch_size=None, max_tokens=None)
    assert len(whole["labels"]) == 50


def test_a_row_without_label_is_named_and_a_task_without_loss_refused(
    task: Task, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "good", "label": "POSITIVE"}\n{"text": "sad", "label": "sideways"}\n')
    with pytest.raises(ws.DataError) as caught:
        ws.batches(file, task)
    assert caught.value.code == "label-unknown" and caught.value.where.line == 2
    with pytest.raises(ws.DataError, match="no rows"):
        ws.batches([], task)
    embedding = ws.load(tiny("bert", "base"), task="sentence-embedding").task
    monkeypatch.setattr(type(embedding), "trainable", False)
    with pytest.raises(ws.UsageError) as refused:
        ws.batches(ROWS, embedding)
    assert refused.value.code == "task-not-trainable"


def test_the_windows_of_a_row_count_against_the_budget(task: Task) -> None:
    windowed = dataclasses.replace(
        task, long_text="windows", stride=4, tokenizer=dataclasses.replace(task.tokenizer, limit=16)
    )
    rows = [{"text": "good words and bad words " * (1 + i % 7), "label": "POSITIVE"} for i in range(40)]
    made = ws.batches(rows, windowed, max_tokens=256)
    shapes = [tuple(batch["input_ids"].shape) for batch in made]
    assert max(pieces for pieces, _ in shapes) > max(len(batch) for batch in made.plan)  # rows of several windows
    assert all(
        pieces * tokens <= 256 or len(batch) == 1 for (pieces, tokens), batch in zip(shapes, made.plan, strict=True)
    )
