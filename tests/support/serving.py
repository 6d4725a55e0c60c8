"""What tests of the server share: runtimes that misbehave on purpose, and waiting until a server is ready."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import numpy as np
import tokenizers

import warmstart as ws
from warmstart.batching import Shapes
from warmstart.engine import Runtime
from warmstart.features import Array, Batch
from warmstart.tasks.sentence_embedding import Embedding
from warmstart.tasks.text_classification import TextClassification
from warmstart.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """A runtime that computes two logits from a text's token ids; no model, and nothing to load."""

    device: str = "cpu"
    shapes: Shapes = Shapes(4096)

    def run(self, batch: Batch) -> dict[str, Array]:
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        return {"logits": np.stack([(mask * np.sin(ids)).sum(1), (mask * np.cos(ids)).sum(1)], axis=1)}


def as_described(client: httpx.Client, path: str, body: Any) -> Any:
    """The answer to a POST of `body`, which is as /openapi.json says."""
    answer = client.post(path, json=body)
    answer.raise_for_status()
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert "{}" not in json.dumps(schema), "a part that may be anything"
    jsonschema_rs.validator_for(schema).validate(answer.json())
    return answer.json()


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


@dataclasses.dataclass(frozen=True)
class ArithmeticVectors(Arithmetic):
    """A runtime that computes a vector of four numbers."""

    def run(self, batch: Batch) -> dict[str, Array]:
        logits = super().run(batch)["logits"]
        return {"embedding": np.concatenate([logits, np.ones_like(logits)], axis=1).astype(np.float32)}


def numpy_embedder() -> ws.Pipeline:
    """An embedder of the same tokenizer; no model, and nothing to load."""
    light = numpy_pipeline()
    task = Embedding(light.tokenizer)
    return dataclasses.replace(light, task=task, runtime=ArithmeticVectors(), name="embed")


@dataclasses.dataclass
class Gated:
    """A runtime that runs nothing while `opened` is not set, and notes the rows of every batch."""

    inner: Runtime
    opened: threading.Event = dataclasses.field(default_factory=threading.Event)
    entered: threading.Event = dataclasses.field(default_factory=threading.Event)
    batches: list[int] = dataclasses.field(default_factory=list)
    device: str = "cpu"
    shapes: Shapes = Shapes(4096)

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
    shapes: Shapes = Shapes(4096)

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


# A server in a process of its own, without torch: what signals do is the same for every model.
LIGHT = """
import logging, sys
import warmstart as ws
from support.serving import numpy_pipeline
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
ws.serve(numpy_pipeline(), port=0, api_keys=sys.argv[1:])
"""
KEY = "a-key-of-some-length"


@contextmanager
def serving(command: Sequence[object]) -> Iterator[tuple[subprocess.Popen[bytes], str, list[str]]]:
    """A ready server's process, its URL, and the lines of its stderr as they come."""
    paths = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    arguments = [sys.executable, *map(str, command)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    lines: list[str] = []
    assert process.stderr is not None and process.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(str(line, "utf-8") for line in process.stderr or ()))
    reading.start()
    try:
        until = time.monotonic() + 60
        while not (found := re.search(r"http://[\d.]+:\d+", "".join(lines))):
            assert process.poll() is None and time.monotonic() < until, lines
            time.sleep(0.05)
        wait_ready(found.group())
        yield process, found.group(), lines
    finally:
        process.kill()
        process.wait(10)
        reading.join(10)
        printed = process.stdout.read()
        process.stdout.close()
        process.stderr.close()
    assert printed == b""  # stdout is for results, of which a server has none
