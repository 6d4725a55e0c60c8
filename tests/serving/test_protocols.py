"""Every protocol against the library's own answers, over real HTTP, with the clients people use."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import numpy as np
import openai
import pytest

import warmstart as ws
from support.serving import as_described
from warmstart.cli.main import run
from warmstart.serving import app as app_module
from warmstart.serving.protocols import native
from warmstart.serving.server import Server
from warmstart.tasks import as_dict, contract

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
JSON = {"Content-Type": "application/json"}
TEXTS = ["I love this film, it is wonderful and warm.", "A dull, tired plot.", "bad", "", "naïve 日本語 \U0001f600"]


def close(one: Any, other: Any) -> bool:
    """The same plain values, floats to 1e-5: company in a batch may change the last bits."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-5
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(close(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("model", ["reviews", "embed"])
def test_native_gives_every_field_of_the_librarys_prediction(
    client: httpx.Client, classifier: ws.Pipeline, embedder: ws.Pipeline, model: str
) -> None:
    pipe = {"reviews": classifier, "embed": embedder}[model]
    expected = [as_dict(prediction) for prediction in pipe(TEXTS)]
    answer = client.post(f"/v1/predict/{model}", json=TEXTS)
    assert answer.status_code == 200 and close(answer.json(), expected)
    for text, prediction in zip(TEXTS, expected, strict=True):
        assert close(client.post(f"/v1/predict/{model}", json=text).json(), prediction)
        assert close(client.post(f"/v1/predict/{model}", json={"text": text}).json(), prediction)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/predict/{}", TEXTS), ("/models/{}", {"inputs": TEXTS}), ("/models/{}", {"inputs": TEXTS[0]})],
)
@pytest.mark.parametrize("model", ["reviews", "embed"])
def test_answers_are_as_described(client: httpx.Client, path: str, body: Any, model: str) -> None:
    as_described(client, path.format(model), body)


@pytest.mark.parametrize(("path", "name"), [("/v1/predict/embed", ""), ("/models/embed", "inputs")])
def test_the_answer_to_many_rows_is_built_in_a_thread(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    threads = list[str]()
    real = app_module.to_json

    def noting(value: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return real(value)

    monkeypatch.setattr(app_module, "to_json", noting)
    for rows in (TEXTS, TEXTS * 20):
        as_described(client, path, {name: rows} if name else rows)
    assert [thread == "warmstart-http" for thread in threads] == [True, False]


def test_many_embeddings_are_those_of_each(client: httpx.Client, embedder: ws.Pipeline) -> None:
    many = TEXTS * 20
    expected = [prediction.embedding for prediction in embedder(many)]
    found = as_described(client, "/embed", {"inputs": many})
    assert np.allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    asked = {"model": "embed", "input": many, "encoding_format": "float"}
    assert np.allclose([one["embedding"] for one in as_described(client, "/v1/embeddings", asked)["data"]], expected)
    labelled = as_described(client, "/predict", {"inputs": [[text] for text in many]})
    assert len(labelled) == len(many)


def test_pairs_are_rows_of_two_fields(client: httpx.Client, classifier: ws.Pipeline) -> None:
    answer = client.post("/v1/predict/reviews", json=[{"text": "good", "text_pair": "bad"}])
    assert close(answer.json(), [as_dict(classifier(("good", "bad")))])


def test_a_cut_text_is_told_of_in_the_body_and_in_a_header(client: httpx.Client) -> None:
    answer = client.post("/v1/predict/reviews", json=["good", "good " * 500])
    assert [row["truncated"] for row in answer.json()] == [False, True]
    assert answer.headers["x-truncated-rows"] == "1"


def test_many_clients_at_once_each_get_their_own_answers(client: httpx.Client, classifier: ws.Pipeline) -> None:
    texts = [f"take {n}: {TEXTS[n % 3]} {'very ' * (n % 17)}good" for n in range(96)]
    expected = [as_dict(prediction) for prediction in classifier(texts)]

    def ask(first: int) -> list[Any]:
        return client.post("/v1/predict/reviews", json=texts[first : first + 3]).json()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = [row for rows in pool.map(ask, range(0, 96, 3)) for row in rows]
    assert close(found, expected)


def test_the_openai_client_embeds_and_lists(server: Server, embedder: ws.Pipeline) -> None:
    with (
        httpx.Client(trust_env=False) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http, max_retries=0) as asking,
    ):
        assert [model.id for model in asking.models.list()] == ["reviews", "embed"]
        assert asking.models.retrieve("embed").object == "model"
        expected = np.array([prediction.embedding for prediction in embedder(TEXTS)])
        for form in ("float", "base64", openai.NOT_GIVEN):
            answer = asking.embeddings.create(model="embed", input=TEXTS, encoding_format=form)
            found = [
                np.frombuffer(base64.b64decode(item.embedding), "<f4") if isinstance(item.embedding, str)
                else np.array(item.embedding)
                for item in answer.data
            ]  # fmt: skip
            assert np.allclose(found, expected, atol=1e-5)
            assert [item.index for item in answer.data] == list(range(5))
        assert answer.usage.prompt_tokens == sum(prediction.tokens for prediction in embedder(TEXTS))
        with pytest.raises(openai.NotFoundError) as missing:
            asking.embeddings.create(model="gpt-9", input="x")
        assert missing.value.code == "model-unknown"
        with pytest.raises(openai.UnprocessableEntityError, match="dimensions"):
            asking.embeddings.create(model="embed", input="x", dimensions=7)
        with pytest.raises(openai.NotFoundError, match="does not do sentence-embedding"):
            asking.embeddings.create(model="reviews", input="x")


def test_hugging_faces_client_classifies_and_embeds(
    server: Server, classifier: ws.Pipeline, embedder: ws.Pipeline
) -> None:
    asking = huggingface_hub.InferenceClient(model=f"{server.url}/models/reviews")
    expected = classifier(TEXTS[0]).scores
    found = asking.text_classification(TEXTS[0])
    assert [one.label for one in found] == sorted(expected, key=lambda label: -expected[label])
    assert all(abs(one.score - expected[one.label]) < 1e-5 for one in found)
    assert len(asking.text_classification(TEXTS[0], top_k=1)) == 1
    embedding = huggingface_hub.InferenceClient(model=f"{server.url}/models/embed").feature_extraction(TEXTS[0])
    assert np.allclose(embedding, embedder(TEXTS[0]).embedding, atol=1e-5)


def test_hugging_faces_parameters_are_followed_or_refused(client: httpx.Client) -> None:
    assert client.post("/", json={"inputs": ["a", "b"]}).json()[1][0].keys() == {"label", "score"}
    whole = client.post("/", content='{"inputs": "good", "parameters": {"top_k": 1.0}}', headers=JSON)
    assert whole.status_code == 200 and len(whole.json()[0]) == 1, "JSON's schemas count 1.0 among the integers"
    for parameters in ({"function_to_apply": "none"}, {"top_k": 0}, {"top_k": 1.5}, {"top_k": True}, []):
        answer = client.post("/models/reviews", json={"inputs": "a", "parameters": parameters or 3})
        assert answer.status_code == 422, parameters


def test_openais_user_is_a_text_that_nothing_is_done_with(client: httpx.Client) -> None:
    asked = {"model": "embed", "input": "good"}
    answers = [client.post("/v1/embeddings", json={**asked, "user": user}) for user in ("me", None, False)]
    assert [answer.status_code for answer in answers] == [200, 200, 422]


def test_text_embeddings_inferences_routes(
    client: httpx.Client, classifier: ws.Pipeline, embedder: ws.Pipeline
) -> None:
    raw = np.array([prediction.embedding for prediction in embedder(TEXTS)])
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.allclose(client.post("/embed", json={"inputs": TEXTS}).json(), unit, atol=1e-5)
    assert np.allclose(client.post("/embed", json={"inputs": TEXTS[0]}).json(), unit[:1], atol=1e-5)
    assert np.allclose(client.post("/embed", json={"inputs": TEXTS, "normalize": False}).json(), raw, atol=1e-5)
    one = client.post("/predict", json={"inputs": "good"}).json()
    assert close({item["label"]: item["score"] for item in one}[one[0]["label"]], classifier("good").score)
    pair = client.post("/predict", json={"inputs": ["good", "bad"]}).json()
    assert abs(pair[0]["score"] - classifier(("good", "bad")).score) < 1e-5
    batch = client.post("/predict", json={"inputs": [["good"], ["good", "bad"]]}).json()
    assert close(batch, [one, pair])
    info = client.get("/info").json()
    assert (info["model_id"], info["model_type"], info["max_input_length"]) == ("reviews", {"classifier": {}}, 128)


def test_text_embeddings_inference_refuses_a_long_text_unless_it_may_be_cut(client: httpx.Client) -> None:
    long = "good " * 500
    for path in ("/embed", "/predict"):
        refused = client.post(path, json={"inputs": long})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "input-too-long")
        assert client.post(path, json={"inputs": long, "truncate": True}).status_code == 200


def test_openapi_describes_every_route_and_its_own_answers(server: Server, client: httpx.Client) -> None:
    page = client.get("/openapi.json").json()
    routes = {
        path
        for route in server.service.routes
        for path in ([route.path.replace("{model}", name) for name in ("reviews", "embed")])
        if route.path != "/v1/models/{model}"
    }
    assert set(page["paths"]) == routes | {"/v1/models/{model}"}
    for path, text in (("/v1/predict/reviews", True), ("/v1/predict/embed", False)):
        post = page["paths"][path]["post"]
        schemas = post["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"]
        answer = client.post(path, json="good").json()
        assert [set(one.get("properties", {})) == set(answer) for one in schemas] == [True, False]
        assert ("label" in answer) == text
        assert {"400", "403", "413", "415", "422", "429", "500", "503", "504"} <= set(post["responses"])


def test_metrics_count_what_was_done(client: httpx.Client) -> None:
    client.post("/v1/predict/reviews", json=["good", "bad"])
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(values['warmstart_rows_total{model="reviews"}']) >= 2
    assert float(values['warmstart_queue_tokens{model="reviews"}']) == 0
    for stage in ("encode", "queue", "run", "decode"):
        assert float(values[f'warmstart_stage_seconds_count{{model="reviews",stage="{stage}"}}']) >= 1
    for name in ("batch_fill", "batch_padding"):
        assert float(values[f'warmstart_{name}_ratio_count{{model="reviews"}}']) >= 1


@pytest.mark.real_data
def test_command_line_library_and_http_give_the_same_on_a_thousand_real_texts(
    classifier: ws.Pipeline, tiny: Callable[..., Path], client: httpx.Client, tmp_path: Path
) -> None:
    if not DATA.is_dir():
        pytest.skip("../shared/data is absent")
    lines = (DATA / "reviews" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:1000]
    texts = [json.loads(line)["text"] for line in lines]
    expected = [as_dict(prediction) for prediction in classifier(texts)]
    found = [
        row
        for at in range(0, 1000, 125)
        for row in client.post("/v1/predict/reviews", json=texts[at : at + 125]).json()
    ]
    given, printed = tmp_path / "texts.jsonl", tmp_path / "predictions.jsonl"
    given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    assert run(["predict", "-m", str(tiny("bert")), "-i", str(given), "-o", str(printed), "--device", "cpu"]) == 0
    written = [json.loads(line) for line in printed.read_text(encoding="utf-8").splitlines()]
    assert len(found) == len(written) == 1000
    for others in (found, written):
        assert [other["label"] for other in others] == [one["label"] for one in expected]
        assert all(close(other["scores"], one["scores"]) for other, one in zip(others, expected, strict=True))
    assert close(found, expected)


def test_many_predictions_are_made_plain_off_the_event_loop_and_their_numbers_at_once(
    client: httpx.Client, embedder: ws.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, one_by_one = list[str](), list[Any]()

    def noted(prediction: Any) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return as_dict(prediction)

    def counted(value: Any) -> Any:
        one_by_one.append(value)
        return plain(value)

    plain = contract._plain
    monkeypatch.setattr(native, "as_dict", noted)
    monkeypatch.setattr(contract, "_plain", counted)
    few, many = (client.post("/v1/predict/embed", json=["bad"] * rows).json() for rows in (2, 100))
    expected = as_dict(embedder("bad"))
    assert all(close(one, expected) for one in [*few, *many])
    assert len(threads) == 102
    assert set(threads[:2]) == {"warmstart-http"} and "warmstart-http" not in threads[2:]
    assert len(one_by_one) == 103 * len(expected)
