"""Hugging Face's protocol for the understanding tasks: what its own client reads out of our answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

import warmstart as ws
from support.serving import as_described, wait_ready
from warmstart.serving.server import Server
from warmstart.tasks import as_dict

TEXT = "I love this film, it is wonderful and warm."
ZERO = "zero-shot-classification"


@pytest.fixture(scope="module")
def pipes(tiny: Callable[..., Path]) -> Mapping[str, ws.Pipeline]:
    def load(folder: Path, task: str, **options: Any) -> ws.Pipeline:
        return ws.load(folder, task=task, options=options, device="cpu")

    bio, nli = ("O", "B-PER", "I-PER"), ("contradiction", "neutral", "entailment")
    return {
        "tokens": load(tiny("bert", "tokens", bio), "token-classification"),
        "answers": load(tiny("roberta", "question-answering"), "question-answering", no_answer_threshold=1.0),
        "zero": load(tiny("bert", labels=nli), ZERO, multi_label=True),
        "near": load(tiny("bert", "base"), ZERO, labels=["good", "bad"]),
        "masks": load(tiny("distilbert", "masks"), "fill-mask", top_k=3),
        "rerank": load(tiny("bert", labels=("score",)), "rerank"),
    }


@pytest.fixture(scope="module")
def url(pipes: Mapping[str, ws.Pipeline]) -> Iterator[str]:
    with Server(pipes, port=0) as running:
        wait_ready(running.url)
        yield f"{running.url}/models"


def same(found: Any, expected: Mapping[str, Any], fields: str) -> None:
    """One answer as the client reads it: these fields, numbers to 1e-5, and nothing else that we sent."""
    read = {name: value for name, value in asdict(found).items() if value is not None}
    assert set(read) == set(fields.split())
    for name, value in read.items():
        assert value == (pytest.approx(expected[name], abs=1e-5) if isinstance(value, float) else expected[name])


ROWS: Mapping[str, Any] = {
    "tokens": TEXT,
    "answers": {"question": "is it warm?", "context": TEXT},
    "zero": {"text": TEXT, "labels": ["a story", "travel"]},
    "near": TEXT,
    "masks": "I love this [MASK], it is warm.",
    "rerank": {"query": "is it warm?", "passages": ["A dull, tired plot.", TEXT]},
}


def test_answers_are_as_described(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    assert ROWS.keys() == pipes.keys()
    with httpx.Client(base_url=url.removesuffix("/models"), timeout=20, trust_env=False) as client:
        for name, row in ROWS.items():
            one = as_described(client, f"/models/{name}", {"inputs": row})
            [same] = as_described(client, f"/models/{name}", {"inputs": [row]})
            assert one == same or one == [same]
        as_described(client, "/models/masks", {"inputs": "good [MASK] [MASK]"})


def test_entities(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    asking = huggingface_hub.InferenceClient(model=f"{url}/tokens")
    expected = pipes["tokens"](TEXT).entities
    for more in ({}, {"aggregation_strategy": "first"}):
        found = asking.token_classification(TEXT, **more)
        assert len(found) == len(expected) > 0
        for one, entity in zip(found, expected, strict=True):
            same(one, entity, "entity_group score word start end")
    with pytest.raises(HfHubHTTPError, match="served with 'first'"):
        asking.token_classification(TEXT, aggregation_strategy="simple")


def test_an_answer(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    asking = huggingface_hub.InferenceClient(model=f"{url}/answers")
    expected = as_dict(pipes["answers"]({"question": "is it warm?", "context": TEXT}))
    assert expected["answer"] and TEXT[expected["start"] : expected["end"]] == expected["answer"]
    for more in ({}, {"top_k": 1, "max_answer_len": 30}):
        same(asking.question_answering("is it warm?", TEXT, **more), expected, "answer score start end")
    with pytest.raises(HfHubHTTPError, match="top_k"):
        asking.question_answering("is it warm?", TEXT, top_k=3)
    for threshold, status in ((1, 200), (1.0, 200), (True, 422), (0.5, 422), ("1.0", 422)):
        asked = {"inputs": {"question": "a", "context": "b"}, "parameters": {"no_answer_threshold": threshold}}
        assert httpx.post(f"{url}/answers", json=asked, trust_env=False).status_code == status, threshold


@pytest.mark.parametrize(("model", "multi_label"), [("zero", True), ("near", False)])
def test_candidate_labels(url: str, pipes: Mapping[str, ws.Pipeline], model: str, multi_label: bool) -> None:
    """The client says `multi_label` at every call, asked or not: what the model does in any case is taken."""
    asking = huggingface_hub.InferenceClient(model=f"{url}/{model}")
    labels = ["a story", "travel", "warm words"]
    expected = pipes[model]({"text": TEXT, "labels": labels})
    found = asking.zero_shot_classification(TEXT, labels, multi_label=multi_label)
    assert sorted(one.label for one in found) == sorted(labels)
    scores = dict(zip(expected.labels, expected.scores, strict=True))
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        same(one, {"label": one.label, "score": scores[one.label]}, "label score")
    with pytest.raises(HfHubHTTPError, match="multi_label"):
        asking.zero_shot_classification(TEXT, labels, multi_label=not multi_label)
    with pytest.raises(HfHubHTTPError, match="hypothesis_template"):
        asking.zero_shot_classification(TEXT, labels, multi_label=multi_label, hypothesis_template="So: {}")


def test_labels_of_a_row_and_of_the_model(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:
        asked = {"inputs": [{"text": "bad"}, {"text": TEXT}], "parameters": {"candidate_labels": "film, plot"}}
        found = client.post("/near", json=asked).json()
        assert [{item["label"] for item in one} for one in found] == [{"film", "plot"}] * 2
        [own] = client.post("/near", json={"inputs": [TEXT]}).json()
        assert {item["label"] for item in own} == {"good", "bad"}
        wrong = client.post("/near", json={"inputs": TEXT, "parameters": {"candidate_labels": ["a", "a"]}})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "field-not-labels")


def test_masks(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    asking = huggingface_hub.InferenceClient(model=f"{url}/masks")
    text = "I love this [MASK], it is warm."
    [expected] = pipes["masks"](text).masks
    for more in ({}, {"top_k": 3}):
        found = asking.fill_mask(text, **more)
        assert len(found) == len(expected) == 3
        for one, candidate in zip(found, expected, strict=True):
            same(one, candidate, "score sequence token token_str")
    with pytest.raises(HfHubHTTPError, match="targets"):
        asking.fill_mask(text, targets=["film"])
    with httpx.Client(base_url=url, timeout=20, trust_env=False) as client:  # several masks are a list each, or none
        counts = [len(client.post("/masks", json={"inputs": f"good {'[MASK] ' * n}"}).json()) for n in (0, 2, 4)]
        assert counts == [0, 2, 4]


def test_passages(url: str, pipes: Mapping[str, ws.Pipeline]) -> None:
    """Its client has no call for a query with passages: they are a row, as in our own protocol."""
    row = {"query": "is it warm?", "passages": ["A dull, tired plot.", TEXT, "bad"]}
    expected = as_dict(pipes["rerank"](row))["results"]
    found = httpx.post(f"{url}/rerank", json={"inputs": row}, timeout=20, trust_env=False).json()
    assert len(found) == 3 and [list(one) for one in found] == [list(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert {**one, "score": pytest.approx(one["score"], abs=1e-5)} == other
