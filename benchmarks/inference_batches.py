"""Part `batches`: random batches of 32 reviews, unpadded and padded, forward and training step, in one process."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from inference_prepare import MODEL
from inference_workloads import DATA

import warmstart as ws
from warmstart.rows import read
from warmstart.verbs.bench_process import spare_cores
from warmstart.verbs.bench_race import turns
from warmstart.verbs.bench_worker import pin

BATCH, SEED = 32, 0
FORWARD_BATCHES, TRAINING_BATCHES = 16, 6  # of each repeat
Batch = dict[str, torch.Tensor]


def run_batches(forms: Path, rows: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """The records of the part: in each repeat the same new batches for both, in turn. `rows`: of the training part."""
    pin(spare_cores(1))
    torch.set_num_threads(1)
    models = {"unpadded": ws.unpad(_model()), "padded": ws.pad(_model())}
    batches = _batches(rows)
    for what, count, step in (
        ("forward", FORWARD_BATCHES, _forward(models)),
        ("training step", TRAINING_BATCHES, _training_step(models)),
    ):
        for name in models:
            step(name, batches[0])  # warm
        for repeat in range(repeats):
            mine = [batches[(repeat * count + k) % len(batches)] for k in range(min(count, len(batches)))]
            seconds = dict.fromkeys(models, 0.0)
            for k, batch in enumerate(mine):
                for name in turns(list(models), repeat + k):
                    started = time.perf_counter()
                    step(name, batch)
                    seconds[name] += time.perf_counter() - started
            print(f"{what}, repeat {repeat + 1}: {seconds['padded'] / seconds['unpadded']:.2f}", file=sys.stderr)
            yield {"kind": "pass", "what": what, "repeat": repeat, "batches": len(mine), **seconds, **_tokens(mine)}
    yield {"kind": "difference", "logits": max(_difference(batch) for batch in batches[:8])}


def _model() -> Any:
    return ws.load(MODEL, device="cpu").model


def _forward(models: dict[str, Any]) -> Callable[[str, Batch], None]:
    def step(name: str, batch: Batch) -> None:
        model = models[name].eval()
        with torch.inference_mode():
            model(**{key: value for key, value in batch.items() if key != "labels"})

    return step


def _training_step(models: dict[str, Any]) -> Callable[[str, Batch], None]:
    """Forward with dropout, backward, AdamW."""
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for name, model in models.items()}

    def step(name: str, batch: Batch) -> None:
        models[name].train()
        models[name](**batch).loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    return step


def _difference(batch: Batch) -> float:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.inference_mode():
        one, other = (model.eval()(**inputs).logits for model in (ws.unpad(_model()), ws.pad(_model())))
    return float((one - other).abs().max())


def _batches(rows: int | None) -> list[Batch]:
    """Reviews of the training part, in random order, as a textbook pads them."""
    pipe = ws.load(MODEL, device="cpu")
    found = list(read(DATA / "reviews" / "train.jsonl", fields=pipe.task.fields, targets=True))
    random.Random(SEED).shuffle(found)
    found = found[: rows or len(found)]
    index = dict(pipe.model.config.label2id)
    batches = []
    for first in range(0, len(found) - BATCH + 1, BATCH):
        part = found[first : first + BATCH]
        inputs = pipe.tokenizer([row["text"] for row in part], padding=True, truncation=True, return_tensors="pt")
        labels = torch.tensor([index[row["label"].upper()] for row in part])
        batches.append({**inputs, "labels": labels})
    return batches


def _tokens(batches: Sequence[Batch]) -> dict[str, int]:
    masks = [batch["attention_mask"] for batch in batches]
    return {"tokens": int(sum(mask.sum() for mask in masks)), "positions": sum(mask.numel() for mask in masks)}
