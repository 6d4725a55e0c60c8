"""Parts `memory` and `scale`: does a long stream of rows cost more memory, or more time a row, than a short one."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from inference_prepare import MODEL, prepare
from inference_workloads import DATA
from transformers import BertConfig, BertForSequenceClassification

import warmstart as ws
from warmstart.checkpoints import find
from warmstart.verbs.bench_process import spare_cores
from warmstart.verbs.bench_race import turns
from warmstart.verbs.bench_worker import pin

ROWS, WARM_UP_ROWS, EVERY = 1_000_000, 50_000, 10_000
SHORT, LONG = 10_000, 100_000


def reviews() -> Iterator[str]:
    """Reviews of the training part, for ever; each round tells itself by a number, so that no text comes twice."""
    lines = (DATA / "reviews" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    for turn in itertools.count():
        for text in texts:
            yield f"{text} {turn}" if turn else text


def run_memory(forms: Path, rows: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """The process's memory every `EVERY` rows of a stream through two layers of width 64."""
    pin(spare_cores(1))
    torch.set_num_threads(1)  # two threads on one core wait for each other
    total = rows or ROWS
    pipe = ws.load(_toy(forms / "toy"), device="cpu")
    started = time.perf_counter()
    for done, _ in enumerate(pipe(itertools.islice(reviews(), total)), start=1):
        if done % min(EVERY, max(1, total // 10)) == 0 or done == total:
            seconds = time.perf_counter() - started
            print(f"{done:,} rows, {memory_mb():.0f} MB, {done / seconds:.0f} rows/s", file=sys.stderr)
            warm = done >= min(WARM_UP_ROWS, total // 2)
            yield {"kind": "memory", "rows": done, "mb": memory_mb(), "seconds": seconds, "warm": warm}


def run_scale(forms: Path, rows: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """Seconds for 10,000 rows and for 100,000, in int8, in turn; at most three times."""
    pin(spare_cores(1))
    _, failed = prepare(forms, only=("openvino-int8",))
    if failed:
        yield {"kind": "failed", "name": "warmstart int8", "reason": failed["openvino-int8"]}
        return
    pipe = ws.load(forms / "openvino-int8")
    counts = [SHORT, LONG] if rows is None else [rows, 10 * rows]
    for _ in pipe(itertools.islice(reviews(), min(counts[0], 4096))):
        pass
    for repeat in range(min(3, repeats)):
        for count in turns(counts, repeat):
            gc.collect()
            started = time.perf_counter()
            for _ in pipe(itertools.islice(reviews(), count)):
                pass
            seconds = time.perf_counter() - started
            print(f"{count:,} rows: {1e3 * seconds / count:.3f} ms a row", file=sys.stderr)
            yield {"kind": "scale", "repeat": repeat, "rows": count, "seconds": seconds}


def memory_mb() -> float:
    """What this process holds now, in MB (10^6 bytes)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024 / 1e6


def _toy(folder: Path) -> Path:
    """A classifier of two narrow layers with fresh weights, and the starter's tokenizer."""
    source = find(MODEL).folder
    config = BertConfig.from_pretrained(
        source, num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    for path in source.glob("*token*"):
        shutil.copyfile(path, folder / path.name)
    return folder
