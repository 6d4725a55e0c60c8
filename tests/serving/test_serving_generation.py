"""A decoder behind the server's own protocol: rows in, texts out, as the library gives them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

import warmstart as ws
from support.serving import as_described, wait_ready
from warmstart.rows import Row
from warmstart.serving import models
from warmstart.serving.server import Server
from warmstart.tasks import as_dict


def test_generated_texts_are_those_of_the_library(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("llama", "generation"), options={"max_new_tokens": 6, "temperature": 1.0}, device="cpu")
    rows = [
        {"prompt": "I love this film"},
        {"messages": [{"role": "user", "content": "is it fun"}]},
        {"prompt": "x", "seed": 7},
    ]
    with Server({"chat": pipe}, port=0) as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        wait_ready(running.url)
        answer = client.post("/v1/predict/chat", json=rows, timeout=20)
        assert answer.status_code == 200, answer.text
        assert answer.json() == [as_dict(prediction) for prediction in pipe(rows)]
        wrong = client.post("/v1/predict/chat", json=[{"messages": [{"role": "user"}]}], timeout=20)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "field-not-messages")


def test_the_hub_client_reads_generated_texts(tiny: Callable[..., Path]) -> None:
    """Summaries and translations are text-to-text; each of its methods reads a name of its own."""
    options = {"max_new_tokens": 5}
    pipes = {
        "chat": ws.load(tiny("llama", "generation"), options=options, device="cpu"),
        "t5": ws.load(tiny("t5", "text-to-text"), task="text-to-text", options=options, device="cpu"),
    }
    with Server(pipes, port=0) as running, httpx.Client(base_url=running.url, trust_env=False) as client:
        wait_ready(running.url)
        chat, t5 = (huggingface_hub.InferenceClient(model=f"{running.url}/models/{name}") for name in pipes)
        wanted = pipes["t5"]("good words").text
        assert chat.text_generation("I love this film") == pipes["chat"]("I love this film").generated_text
        assert t5.translation("good words").translation_text == t5.summarization("good words").summary_text == wanted
        several = client.post("/models/t5", json={"inputs": ["good words", "x"]}, timeout=20).json()
        assert [one["generated_text"] for one in several] == [wanted, pipes["t5"]("x").text]
        for name in pipes:
            as_described(client, f"/models/{name}", {"inputs": ["good words", "x"]})
        with pytest.raises(HfHubHTTPError, match="max_new_tokens"):
            chat.text_generation("I love this film", max_new_tokens=6)


def test_a_client_that_leaves_stops_its_answer_and_no_other(tiny: Callable[..., Path]) -> None:
    """The first request holds the worker until two more share a batch; of these one leaves after the first token."""
    pipe = ws.load(tiny("llama", "generation"), options={"max_new_tokens": 30}, device="cpu")
    plug, leaver, stayer = ({"prompt": text} for text in ("x", "good words", "some words"))
    expected, left = pipe(stayer), pipe(leaver)
    assert min(expected.new_tokens, left.new_tokens) > 10, "both have much to say"
    sizes, gates = list[int](), {size: threading.Event() for size in (1, 2)}

    def before(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        sizes.append(len(given["input_ids"]))
        assert gates[sizes[-1]].wait(20), "the test forgot to open the gate"

    with (
        Server({"chat": pipe}, port=0) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
        ThreadPoolExecutor() as threads,
    ):
        wait_ready(running.url)
        hook = pipe.model.register_forward_pre_hook(before, with_kwargs=True)
        first = threads.submit(client.post, "/v1/predict/chat", json=plug)
        until(lambda: sizes == [1])
        body = json.dumps(leaver).encode()
        head = "POST /v1/predict/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        leaving = socket.create_connection(("127.0.0.1", running.port))
        leaving.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        other = threads.submit(client.post, "/v1/predict/chat", json=stayer)
        waiting = sum(feature.length for feature in pipe.task.encode([Row(leaver), Row(stayer)]))
        until(lambda: f'warmstart_queue_tokens{{model="chat"}} {waiting}.0' in client.get("/metrics").text)
        gates[1].set()
        until(lambda: 2 in sizes)
        leaving.close()
        until(lambda: 'status="499"' in client.get("/metrics").text)
        gates[2].set()
        assert first.result().status_code == 200
        assert other.result().json() == as_dict(expected)
        hook.remove()
    assert sizes.count(2) == 1 and sizes[-1] == 1


def test_a_server_that_is_busy_with_long_answers_is_ready(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the time that any request may take: a model that hangs is not."""
    pipe = ws.load(tiny("llama", "generation"), options={"max_new_tokens": 4}, device="cpu")
    gate, held = threading.Event(), threading.Event()

    def before(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        held.set()
        assert gate.wait(20), "the test forgot to open the gate"

    with (
        Server({"chat": pipe}, port=0, limits=ws.Limits(request_seconds=3)) as running,
        httpx.Client(base_url=running.url, trust_env=False, timeout=30) as client,
        ThreadPoolExecutor() as threads,
    ):
        wait_ready(running.url)
        monkeypatch.setattr(models, "_PROBE_SECONDS", 0.2)
        hook = pipe.model.register_forward_pre_hook(before, with_kwargs=True)
        asked = threads.submit(client.post, "/v1/predict/chat", json="good words")
        assert held.wait(20)
        time.sleep(1.1)  # until an earlier proof holds no more
        assert client.get("/readyz").status_code == 200
        time.sleep(2.5)
        assert client.get("/readyz").json()["error"]["code"] == "probe-failed"
        gate.set()
        hook.remove()
        assert asked.result().status_code == 504
        until(lambda: client.get("/readyz").status_code == 200)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
