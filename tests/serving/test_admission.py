"""What comes before the queue: room for rows that wait for their tokens, and probes that tell little."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import warmstart as ws
from support.serving import numpy_pipeline, wait_ready
from warmstart.engine import prepacked_layer, products
from warmstart.engine.layer_inference import infer
from warmstart.rows import Row
from warmstart.serving.limits import Limits
from warmstart.serving.metrics import Metrics
from warmstart.serving.models import Models, Served
from warmstart.serving.queue import Job
from warmstart.serving.refusal import Refusal
from warmstart.serving.server import Server


def test_a_client_that_fills_the_room_of_the_tokenizer_locks_nobody_else_out() -> None:
    models = Models({"reviews": numpy_pipeline()}, Limits(queue_tokens=100), Metrics())
    served, rows = models.served["reviews"], [Row({"text": "good " * 1000})]
    sizes = [served._take_room(rows, "large") for _ in range(2)]
    assert sizes == [100, 100]
    with pytest.raises(Refusal, match="queue-full"):
        served._take_room(rows, "large")
    assert served._take_room(rows, "small") == 100
    with pytest.raises(Refusal, match="queue-full"):
        served._take_room(rows, "small")


def test_many_clients_together_wait_no_longer_than_one_may() -> None:
    """Each with a request that alone would find room; a small one still does."""
    models = Models({"reviews": numpy_pipeline()}, Limits(queue_seconds=0.5), Metrics())
    served = models.served["reviews"]  # its worker does not run, and takes itself for one of 5,000 tokens a second
    for number in range(3):
        served._put(encoded(served, f"client {number}", texts=10))
    with pytest.raises(Refusal, match="queue-full") as refused:
        served._put(encoded(served, "another", texts=10))
    assert refused.value.headers["Retry-After"] == "1"
    served._put(encoded(served, "small", texts=1))


def encoded(served: Served, client: str, *, texts: int) -> Job:
    """Of a hundred tokens a text."""
    rows = [Row({"text": "good " * 98})] * texts
    return Job(client, rows, time.monotonic() + 60, list(served.task.encode(rows)))


def test_what_would_wait_too_long_is_refused_before_it_is_encoded() -> None:
    """Tokens count that a client's other requests will have, by what such requests had: texts that are cut have few."""
    for words, texts, refused in ((98, 20, True), (20_000, 1, False)):
        models = Models({"reviews": numpy_pipeline()}, Limits(queue_seconds=0.5), Metrics())
        served = models.served["reviews"]  # of 5,000 tokens a second, whose texts have 128 at most
        rows = [Row({"text": "good " * words})] * texts
        for _ in range(20):
            job = Job("before", rows, time.monotonic() + 60)
            list(served._admit(job, served._take_room(rows, "before")))
            job.future.cancel()
        served._put(encoded(served, "one", texts=1))
        for _ in range(2):
            served._take_room(rows, "one")  # at most 5,000 tokens each, and 2,000; or 50,000, and 128
        if refused:
            with pytest.raises(Refusal, match="queue-full"):
                served.check_room("one")
        else:
            served.check_room("one")
        served.check_room("another")


def test_what_is_run_of_a_draw_makes_room_when_it_is_as_much_as_a_draw_mostly_is() -> None:
    """Of 5,000 tokens a second that is 1,250, and 156 where the queue holds an eighth of a second."""
    for queue_seconds, parts, left in (
        (2.0, (1250, 1000, 1250), (3750, 3750, 1500)), (0.125, (20, 100, 40), (5000, 5000, 4840)),
    ):  # fmt: skip
        limits = Limits(queue_seconds=queue_seconds)
        worker = Models({"reviews": numpy_pipeline()}, limits, Metrics()).served["reviews"]._worker
        worker._undone, found = 5000, list[int]()
        for tokens in parts:
            worker._count_run(tokens)
            found.append(worker._undone)
        assert tuple(found) == left
        assert worker._drawn_tokens() == max(512, min(1250, int(queue_seconds / 4 * 5000)))


def test_a_model_that_keeps_up_makes_the_event_loop_rest_for_no_other() -> None:
    models = Models({"behind": numpy_pipeline(), "idle": numpy_pipeline()}, Limits(), Metrics())
    behind = models.served["behind"]
    behind._put(encoded(behind, "one", texts=50))
    assert behind.backlog == 1.0
    assert models.least_backlog() == 0.0


def test_what_ran_for_a_client_that_left_is_not_decoded() -> None:
    metrics = Metrics()
    served = Models({"reviews": numpy_pipeline()}, Limits(), metrics).served["reviews"]
    jobs = [encoded(served, client, texts=1) for client in ("left", "there")]
    for one in jobs:
        one.outputs[0] = {"logits": np.zeros(2)}
    jobs[0].future.cancel()
    served._worker._decode_all(jobs)
    assert len(jobs[1].future.result(timeout=1)) == 1
    assert 'warmstart_rows_total{model="reviews"} 1.0' in metrics.text().decode()


def test_lone_short_texts_do_not_make_a_server_think_that_it_is_slow() -> None:
    worker = Models({"reviews": numpy_pipeline()}, Limits(), Metrics()).served["reviews"]._worker
    before = worker.seconds(1000)
    for _ in range(60):
        worker._measured(3, 0.005)
    assert worker.seconds(1000) == before
    for tokens, seconds in ((3, 0.0001), (600, 0.05), (20, 4.0), (1_000, 1.0)):  # faster, large, long, both
        worker._measured(tokens, seconds)
        assert (worker.seconds(1000) < before) is (tokens / seconds > 1000 / before)
        before = worker.seconds(1000)


def test_probes_do_not_change_what_speed_was_measured() -> None:
    with Server({"reviews": numpy_pipeline()}, port=0) as server:
        wait_ready(server.url)
        served = server.service.models.served["reviews"]
        before = served._worker.seconds(1000)
        for _ in range(5):
            asyncio.run(served.probe())
        assert served._worker.seconds(1000) == before


def test_a_server_answers_from_weights_laid_out_once(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: True)
    packed = list[Any]()
    monkeypatch.setattr(prepacked_layer, "infer", lambda *given: packed.append(given) or infer(*given))
    pipe = ws.load(tiny("bert"), device="cpu")
    expected = pipe("a dull and tired plot").scores
    assert not packed
    with Server({"reviews": pipe}, port=0) as server:
        wait_ready(server.url)
        answer = httpx.post(f"{server.url}/v1/predict/reviews", json="a dull and tired plot", trust_env=False).json()
    assert packed
    assert answer["scores"] == pytest.approx(expected, abs=1e-5)


def test_what_generates_makes_nobody_wait_who_is_drawn_with_the_next_batch(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("llama", "generation"), device="cpu")
    worker = Models({"chat": pipe}, Limits(), Metrics()).served["chat"]._worker
    worker._undone = 600
    drawn = worker._drawn_tokens()
    assert (worker.wait(drawn), worker.wait(drawn + 100)) == (0.0, worker.seconds(700))


def test_a_probe_generates_one_token(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("llama", "generation"), options={"max_new_tokens": 30}, device="cpu")
    assert pipe({"prompt": "ready"}).new_tokens > 1
    calls = list[int]()

    def before(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        calls.append(len(given["input_ids"]))

    with Server({"chat": pipe}, port=0) as server:
        wait_ready(server.url)
        hook = pipe.model.register_forward_pre_hook(before, with_kwargs=True)
        asyncio.run(server.service.models.served["chat"].probe())
        hook.remove()
    assert calls == [1]
