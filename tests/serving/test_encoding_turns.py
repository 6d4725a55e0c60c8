"""Rows to features: in turns by client, no further than the queue has room, and for nobody who left."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import warmstart as ws
from support.serving import numpy_pipeline
from warmstart.features import Feature
from warmstart.rows import Row
from warmstart.serving import encoding
from warmstart.serving.encoding import Turns, characters, encode_in_turns, most_characters
from warmstart.serving.limits import Limits
from warmstart.serving.metrics import Metrics
from warmstart.serving.models import Models
from warmstart.serving.queue import Job
from warmstart.serving.refusal import Refusal
from warmstart.tasks.rerank import Rerank
from warmstart.tasks.text_classification import TextClassification
from warmstart.tasks.zero_shot_classification import ZeroShotClassification
from warmstart.tokenization import Encoded, Text, Tokenizer


@dataclasses.dataclass(frozen=True)
class Counting(TextClassification):
    """Notes how many rows each call encodes."""

    calls: list[int] = dataclasses.field(default_factory=list)

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        self.calls.append(len(rows))
        yield from super().encode(rows, train=train)


def counting() -> tuple[ws.Pipeline, list[int]]:
    light = numpy_pipeline()
    task = Counting(light.tokenizer, labels=("NEGATIVE", "POSITIVE"))
    return dataclasses.replace(light, task=task), task.calls


def shown(feature: Feature) -> tuple[Any, ...]:
    return feature.row, feature.part, feature.inputs["input_ids"].tolist()


@pytest.mark.parametrize(("text", "tokens"), [(1, 1 << 20), (30, 1 << 20), (1 << 20, 1), (30, 50)])
def test_features_of_turns_are_those_of_all_rows_at_once(
    monkeypatch: pytest.MonkeyPatch, text: int, tokens: int
) -> None:
    monkeypatch.setattr(encoding, "_CHARACTERS", text)
    monkeypatch.setattr(encoding, "_TOKENS", tokens)
    light = numpy_pipeline()
    short = dataclasses.replace(light.tokenizer, limit=8)
    task = TextClassification(short, labels=("NEGATIVE", "POSITIVE"), long_text="windows", stride=2)
    rows = [Row({"text": "good bad film a " * (number % 5)}) for number in range(20)]
    found = list(encode_in_turns(task, rows))
    assert found.count(None) > 1
    assert [shown(one) for one in found if one is not None] == [shown(one) for one in task.encode(rows)]


def test_a_small_request_is_encoded_in_one_turn() -> None:
    pipe, calls = counting()
    assert None not in list(encode_in_turns(pipe.task, [Row({"text": "good film"})] * 3)) and calls == [3]


def test_a_client_waits_for_one_turn_of_another_and_not_for_all() -> None:
    turns, begun, go = Turns(1, name="turns"), threading.Event(), threading.Event()
    order = list[str]()
    done = {name: threading.Event() for name in ("large", "second", "small")}

    def work(name: str, count: int) -> Iterator[None]:
        for number in range(count):
            if number:
                yield
            order.append(name)
            begun.set()
            assert go.wait(5)
        done[name].set()

    turns.submit("large", work("large", 4))
    assert begun.wait(5)
    turns.submit("large", work("second", 2))
    turns.submit("small", work("small", 1))
    turns.shutdown()  # what was taken goes on
    go.set()
    assert all(event.wait(5) for event in done.values())
    assert order.index("small") <= 2 and order[-1] == "large"
    assert sorted(order) == ["large"] * 4 + ["second"] * 2 + ["small"]


def test_a_request_too_large_for_the_queue_is_encoded_no_further_than_that() -> None:
    pipe, calls = counting()
    models = Models({"reviews": pipe}, Limits(queue_tokens=2_000), Metrics())
    rows = [Row({"text": "good " * 98})] * 1_000
    with pytest.raises(Refusal, match="request-too-large") as refused:
        asyncio.run(models.served["reviews"].predict(rows, client="a", deadline=time.monotonic() + 20))
    assert refused.value.status == 413
    assert calls == [67]  # of 490 characters each


@pytest.mark.parametrize("kind", ["labels", "passages"])
def test_a_row_of_many_pairs_is_tokenized_no_further_than_that(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    light, encode, counts = numpy_pipeline(), Tokenizer.encode, list[int]()

    def counting(self: Tokenizer, texts: Sequence[Text], **given: Any) -> list[Encoded]:
        counts.append(len(texts))
        return encode(self, texts, **given)

    task = ZeroShotClassification(light.tokenizer) if kind == "labels" else Rerank(light.tokenizer)
    row = Row({"text" if kind == "labels" else "query": "good " * 98, kind: [f"film {n}" for n in range(5_000)]})
    served = Models({"pairs": dataclasses.replace(light, task=task)}, Limits(queue_tokens=5_000), Metrics()).served
    monkeypatch.setattr(Tokenizer, "encode", counting)
    with pytest.raises(Refusal, match="request-too-large"):
        asyncio.run(served["pairs"].predict([row], client="a", deadline=time.monotonic() + 20))
    assert 0 < sum(counts) <= 300


@pytest.mark.parametrize("reason", ["departed", "expired"])
def test_what_nobody_waits_for_is_encoded_no_further_and_counted(reason: str) -> None:
    pipe, calls = counting()
    metrics = Metrics()
    served = Models({"reviews": pipe}, Limits(), metrics).served["reviews"]
    rows = [Row({"text": "good " * 98})] * 1_000
    job = Job("a", rows, time.monotonic() + 20)
    admitting = served._admit(job, served._take_room(rows, "a"))
    next(admitting)
    assert calls == [67]
    if reason == "departed":
        job.future.cancel()
    else:
        job.deadline = 0.0
    assert next(admitting, "ended") == "ended"
    assert calls == [67] and job.gone
    assert f'warmstart_dropped_total{{model="reviews",reason="{reason}"}} 1.0' in metrics.text().decode()
    assert not served._being_encoded and not served._queue.tokens


def test_a_text_counts_once_for_each_candidate_beside_it() -> None:
    assert most_characters(Row({"text": "good", "labels": ["a", "film"]})) == 2 * 4 + 5
    assert most_characters(Row({"text": "good", "text_pair": "bad"})) == 7
    assert most_characters(Row({"tokens": ["good", "film"]})) == 8
    assert most_characters(Row({"text": "good", "labels": [], "seed": 3})) == 4
    assert most_characters(Row({"messages": [{"role": "user", "content": "good"}, {"role": "system"}]})) == 14
    deep: Any = "good"
    for _ in range(5_000):
        deep = [deep]
    assert characters(deep) == 0


def test_small_requests_of_new_clients_find_room_where_large_ones_are_encoded() -> None:
    served = Models({"reviews": numpy_pipeline()}, Limits(queue_tokens=5_000), Metrics()).served["reviews"]
    large, small = [Row({"text": "good " * 5_000})], [Row({"text": "good film"})]
    for number in range(4):
        served._take_room(large, str(number))
    with pytest.raises(Refusal, match="queue-full"):
        served._take_room(large, "another")
    served._take_room(small, "small")
