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

import warmstart as ws
from support.serving import wait_ready
from warmstart.rows import Row
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


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
