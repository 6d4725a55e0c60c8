"""A contestant of the training benchmark, in a process of its own: it trains, and waits after every few steps.

    python training_contestant.py < settings and turns > reports

One JSON object a line. The settings come in first; then a line lets it train `steps` optimizer steps (or to the end),
and it reports {"steps", "seconds", "cpu_seconds"} of this turn, with "between" what stood between its steps (ours
only: it records each step's own time), and with "over" the end of the training. A last line asks for its accuracy. The
clock runs inside a turn only: loading, tokenizing and judging are not timed.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

import warmstart as ws
from warmstart.checkpoints import find
from warmstart.verbs.bench_worker import pin, send
from warmstart.verbs.fitting import Progress

BATCH, RATE, WARM_UP_ROWS = 32, 1e-4, 64
Rows = Sequence[Mapping[str, Any]]


class Turns:
    """The clock of a training that is let go on turn by turn."""

    def __init__(self, outbox: TextIO, *, waits: bool = True) -> None:
        self.outbox, self.waits, self.steps, self.left = outbox, waits, 0, 0
        self.started = self.cpu = self.own = 0.0

    def begin(self) -> None:
        """Wait for a turn."""
        if self.waits:
            self.left = json.loads(sys.stdin.readline())["steps"]
        self.steps, self.own, self.started, self.cpu = 0, 0.0, time.perf_counter(), time.process_time()

    def step(self, own: float | None = None, *, over: bool) -> None:
        """A step is done, which took `own` seconds by its trainer's account: if it was the turn's last, report and
        wait; if it was the training's, report."""
        self.steps += 1
        self.own += own or 0.0
        if over or self.steps == self.left:
            self.report(over=over)
        if not over and self.steps == self.left:
            self.begin()

    def report(self, *, over: bool) -> None:
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        found = {"steps": self.steps, "seconds": seconds, "cpu_seconds": cpu, "over": over}
        send(self.outbox, found | ({"between": seconds - self.own} if self.own else {}))


def main() -> None:
    """Train as the settings say, and report."""
    outbox = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what libraries print is no report
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    pin(settings["cores"])
    torch.set_num_threads(settings["threads"])
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        run = _warmstart if settings["kind"] == "warmstart" else _trainer
        rows, labels = settings["rows"], settings["labels"]
        run({**settings, "rows": rows[:WARM_UP_ROWS]}, Turns(io.StringIO(), waits=False), Path(folder) / "warm", labels)
        send(outbox, {"ready": True})
        judged = run(settings, Turns(outbox), Path(folder) / "run", labels)
        sys.stdin.readline()
        send(outbox, _judgement(judged, settings["test"]))


def _judgement(load: Callable[[], ws.Pipeline], test: Rows) -> dict[str, Any]:
    """Accuracy on the test rows with its interval, by one code for all contestants."""
    if not test:
        return {"accuracy": None}
    metric = ws.evaluate(load(), list(test)).metrics["accuracy"]
    return {"accuracy": metric.value, "lo": metric.lo, "hi": metric.hi}


def _warmstart(settings: Mapping[str, Any], turns: Turns, output: Path, labels: list[str]) -> Callable[[], ws.Pipeline]:
    """`ws.train`, whole: its loop, its records, its snapshots where they are due."""
    config = ws.TrainConfig(
        epochs=1, batch_size=BATCH, learning_rate=RATE, weight_decay=0.0, warmup=0.0, seed=settings["seed"],
        device="cpu", save_every=settings["save_every"],
    )  # fmt: skip
    first = True

    def note(progress: Progress) -> None:
        nonlocal first
        if first:  # the turn begins with the first step, which is over when this is heard for the first time
            first = False
            turns.begin()
            turns.started -= progress.step.seconds
            turns.cpu -= progress.step.seconds
        turns.step(progress.step.seconds, over=progress.step.step == progress.total)

    run = ws.train(
        "starter-encoder", list(settings["rows"]), output=output, task="text-classification", config=config,
        progress=note,
    )  # fmt: skip
    return lambda: ws.load(run.path)


def _trainer(settings: Mapping[str, Any], turns: Turns, output: Path, labels: list[str]) -> Callable[[], ws.Pipeline]:
    """transformers' Trainer with the same rows, epochs, rate, clipping and dropout."""
    folder, longest = find("starter-encoder").folder, settings["pad_to"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 512
    rows = settings["rows"]
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=longest or 512)
    data = [
        {"input_ids": ids, "attention_mask": mask, "labels": labels.index(row["label"])}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], rows, strict=True)
    ]
    torch.manual_seed(settings["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, num_labels=len(labels), id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(output), per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE,
        weight_decay=0.0, max_grad_norm=1.0, warmup_steps=0, lr_scheduler_type="linear", seed=settings["seed"],
        train_sampling_strategy=settings["order"], use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", eval_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip

    class Pausing(transformers.TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            turns.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            turns.step(over=state.global_step == state.max_steps)

    padding: dict[str, Any] = {"padding": "max_length", "max_length": longest} if longest else {"padding": True}
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer, **padding), callbacks=[Pausing()],
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return lambda: ws.load(output, task="text-classification")


if __name__ == "__main__":
    main()
