"""A decoder behind the server's own protocol: rows in, texts out, as the library gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

import warmstart as ws
from support.serving import wait_ready
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
