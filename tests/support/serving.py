"""What tests of the server share: runtimes that misbehave on purpose, and waiting until a server is ready."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import tokenizers

import warmstart as ws
from warmstart.engine import Runtime
from warmstart.features import Array, Batch
from warmstart.tasks.text_classification import TextClassification
from warmstart.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A runtime that computes two logits from a text's token ids; no model, and nothing to load."""

    device: str = "cpu"
    max_tokens: int = 4096

    def run(self, batch: Batch) -> dict[str, Array]:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        return {"logits": np.stack([(mask * np.sin(ids)).sum(1), (mask * np.cos(ids)).sum(1)], axis=1)}


def numpy_pipeline() -> ws.Pipeline:
    """A text classifier of a word-level tokenizer and arithmetic: a word is a token, and each text has two more."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "a"]
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rust.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    tokenizer = Tokenizer.from_json(rust.to_str(), limit=128, unknown="[UNK]")
    task = TextClassification(tokenizer, labels=("NEGATIVE", "POSITIVE"))
    return ws.Pipeline(model=None, tokenizer=tokenizer, task=task, runtime=Arithmetic(), name="reviews")


@dataclasses.dataclass
class Gated:
    """A runtime that runs nothing while `opened` is not set, and notes the rows of every batch."""

    inner: Runtime
    opened: threading.Event = dataclasses.field(default_factory=threading.Event)
    entered: threading.Event = dataclasses.field(default_factory=threading.Event)
    batches: list[int] = dataclasses.field(default_factory=list)
    device: str = "cpu"
    max_tokens: int = 4096

    def run(self, batch: Batch) -> dict[str, Array]:
        self.entered.set()
        assert self.opened.wait(20), "the test forgot to open the gate"
        self.batches.append(len(batch))
        return self.inner.run(batch)


@dataclasses.dataclass
class Misbehaving:
    """A runtime that does `fault` at every batch that holds a text of exactly `tokens` tokens."""

    inner: Runtime
    tokens: int
    fault: Callable[[Batch, dict[str, Array]], dict[str, Array]]
    device: str = "cpu"
    max_tokens: int = 4096

    def run(self, batch: Batch) -> dict[str, Array]:
        outputs = self.inner.run(batch)
        if any(feature.length == self.tokens for feature in batch.features):
            return self.fault(batch, outputs)
        return outputs


def with_runtime(pipeline: ws.Pipeline, runtime: Any) -> ws.Pipeline:
    """The pipeline with another runtime."""
    return dataclasses.replace(pipeline, runtime=runtime)


def wait_ready(url: str, seconds: float = 30.0) -> None:
    """Until /readyz answers 200."""
    until = time.monotonic() + seconds
    status: object = None
    while time.monotonic() < until:
        try:
            status = httpx.get(f"{url}/readyz", timeout=10, trust_env=False).status_code
        except httpx.TransportError as error:
            status = error
        if status == 200:
            return
        time.sleep(0.05)
    raise AssertionError(f"{url} is not ready: {status}")


def eventually(check: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Does it become true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(0.01)
    return check()
