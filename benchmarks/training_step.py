"""What a training step costs beside its products: `python benchmarks/training_step.py starter|xlm-r [--blocks N]`.

The model trains on 32 reviews of like length (one core, one thread), in blocks of a few steps, in turn: its whole word
table, and the rows alone that 2,048 training reviews look up. Medians over steps, the first of each block left out.

starter   MiniLM, `starter-encoder`
xlm-r     a model of XLM-R base's shape, 250,002 words of 768 numbers, with random weights and the starter's ids spread

Beside it, on gradients of the same size: the multiplication that makes mean, clipped gradients, or the same by the
fused AdamW's `grad_scale`; and norm, multiplication and AdamW over one flat tensor in place of all parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

import warmstart as ws
from training import review_rows
from warmstart.batching import collate
from warmstart.rows import Row
from warmstart.training.batches import Batches, make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.gradients import add_gradients
from warmstart.training.loop import finish_gradients
from warmstart.training.numerics import numerics
from warmstart.training.optimizers import adamw
from warmstart.training.vocabulary import word_table

ROWS, BATCH, STEPS = 2048, 32, 5
WORDS, SPREAD = 250_002, 8  # of XLM-R; its ids are the starter's, spread over its table
Times = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["starter", "xlm-r"])
    parser.add_argument("--blocks", type=int, default=4, help="blocks of each kind (default 4)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, batches = prepared(arguments.model)
    with numerics("cpu"):
        for name, times in steps(model, batches, arguments.blocks).items():
            print(json.dumps({"model": arguments.model, "table": name, **milliseconds(times)}), flush=True)
        for name, times in passes(model, arguments.blocks).items():
            print(json.dumps({"model": arguments.model, "pass": name, **milliseconds(times)}), flush=True)


def prepared(name: str) -> tuple[Any, Batches[Any]]:
    """The model, and its batches of like length."""
    pipe = ws.load("starter-encoder", task="text-classification", labels=["negative", "positive"])
    rows = [Row(row) for row in review_rows("train")[:ROWS]]
    batches = make_batches(pipe.task, rows, seed=0, batch_size=BATCH, max_tokens=None)
    if name == "starter":
        return pipe.model, batches
    config = XLMRobertaConfig(vocab_size=WORDS, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
    model = ws.unpad(XLMRobertaForSequenceClassification(config))
    batches.features = [
        [dataclasses.replace(f, inputs={**f.inputs, "input_ids": f.inputs["input_ids"] * SPREAD + 2}) for f in features]
        for features in batches.features
    ]
    return model, batches


def steps(model: Any, batches: Batches[Any], blocks: int) -> dict[str, Times]:
    """Seconds of the parts of steps, with the whole table and with a part of it, in turn."""
    config, task = TrainConfig(), batches.task
    found: dict[str, Times] = {"whole": {}, "looked up": {}}
    by_length = sorted(batches.features, key=lambda row: row[0].length)
    middle = len(by_length) // 2
    batch = collate([feature for row in by_length[middle : middle + BATCH] for feature in row], task.pads)
    model.train()
    for block in range(2 * blocks):
        name = "whole" if block % 2 else "looked up"
        optimizer = adamw(model, learning_rate=1e-5, weight_decay=0.01)
        table = None if name == "whole" else word_table(model, optimizer, batches, config, device="cpu")
        assert name == "whole" or table is not None
        with nullcontext() if table is None else table.training():
            for step in range(STEPS):
                times: dict[str, float] = {}
                with timed(times, "forward and backward"):
                    sums = add_gradients(model, task, [batch], seed=step, device="cpu", precision="fp32")
                with timed(times, "norm and multiplication"):
                    finish_gradients(model, sums.weight, 1.0)
                with timed(times, "AdamW"):
                    optimizer.step()
                with timed(times, "clearing"):
                    optimizer.zero_grad(set_to_none=True)
                if step:
                    for part, seconds in [*times.items(), ("step", sum(times.values()))]:
                        found[name].setdefault(part, []).append(seconds)
        del optimizer, table
    return found


def passes(model: Any, blocks: int) -> dict[str, Times]:
    """Seconds of what comes after the backward pass, in three ways, in turn."""
    shapes = [parameter.shape for parameter in model.parameters()]
    sizes = [shape.numel() for shape in shapes]
    flat = torch.nn.Parameter(torch.randn(sum(sizes)))
    flat.grad = torch.randn(sum(sizes))
    views = [torch.nn.Parameter(part.view(s)) for part, s in zip(flat.data.split(sizes), shapes, strict=True)]
    for view, part, shape in zip(views, flat.grad.split(sizes), shapes, strict=True):
        view.grad = part.view(shape)
    many = torch.optim.AdamW(views, lr=1e-5, fused=True)
    one = torch.optim.AdamW([flat], lr=1e-5, fused=True)
    ways: dict[str, Callable[[], None]] = {
        "multiplied": lambda: after(many, scaled=False),
        "grad_scale": lambda: after(many, scaled=True),
        "flat, multiplied": lambda: after(one, scaled=False),
        "flat, grad_scale": lambda: after(one, scaled=True),
    }
    found: dict[str, Times] = {name: {"norm, scaling and AdamW": []} for name in ways}
    for turn in range(1 + STEPS * blocks):
        for name in sorted(ways, reverse=turn % 2 == 1):
            began = time.perf_counter()
            ways[name]()
            if turn:
                found[name]["norm, scaling and AdamW"].append(time.perf_counter() - began)
    return found


def after(optimizer: torch.optim.Optimizer, *, scaled: bool) -> None:
    """The norm of all gradients, their scaling, and the update."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    factor = 1 / (1 + 1e-6 * min(norm, 1.0))  # the numbers stay of a size
    if not scaled:
        torch._foreach_mul_(gradients, factor)
        optimizer.step()
    else:
        amp: Any = optimizer
        amp.grad_scale, amp.found_inf = torch.tensor(1 / factor), torch.tensor(0.0)
        optimizer.step()
        del amp.grad_scale, amp.found_inf


@contextmanager
def timed(times: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times[part] = time.perf_counter() - began


def milliseconds(times: Times) -> dict[str, float]:
    return {part: round(1000 * statistics.median(seconds), 2) for part, seconds in times.items()}


if __name__ == "__main__":
    main()
