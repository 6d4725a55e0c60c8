"""The routes of text-embeddings-inference: /embed, /predict and /info, for the first model that can answer them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import warmstart
from warmstart.serving.endpoint import Answer, Call, Endpoint, parameter_unsupported
from warmstart.serving.models import Models, Served
from warmstart.serving.refusal import Refusal
from warmstart.serving.schemas import TEXT, array, one_or_more, record

EMBEDS, CLASSIFIES = "sentence-embedding", "text-classification"
_FLAG = {"type": "boolean"}
_NUMBER = {"type": "number"}


def endpoints(models: Models) -> Sequence[Endpoint]:
    """As many of them as the models allow; /info tells of the first model."""
    served = list(models.served.values())
    most = served[0].limits.rows
    info = record({"model_id": TEXT, "model_type": {"type": "object"}, "version": TEXT}, closed=False)
    found = [Endpoint("GET", "/info", _info, "What the first model is", response=info)]
    if any(one.task.name == EMBEDS for one in served):
        request = record(
            {"inputs": one_or_more(TEXT, most=most), "normalize": _FLAG, "truncate": _FLAG}, required=["inputs"]
        )
        summary = "Embeddings; without `truncate`, a text that is too long is refused"
        found.append(Endpoint("POST", "/embed", _embed, summary, request=request, response=array(array(_NUMBER))))
    if any(one.task.name == CLASSIFIES for one in served):
        pair = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}
        inputs = {"anyOf": [TEXT, pair, array(pair, most=most)]}
        request = record({"inputs": inputs, "truncate": _FLAG}, required=["inputs"])
        labelled = array(record({"label": TEXT, "score": _NUMBER}))
        response = {"anyOf": [labelled, array(labelled)]}
        summary = "Labels, best first; a text, a pair of texts, or a list of lists of one or two texts"
        found.append(Endpoint("POST", "/predict", _predict, summary, request=request, response=response))
    return found


async def _info(call: Call) -> Answer:
    served = next(iter(call.models.served.values()))
    limits = served.limits
    return Answer(
        lambda: {
            "model_id": served.name,
            "model_type": _model_type(served),
            "task": served.task.name,
            "max_input_length": served.task.tokenizer.limit,
            "max_batch_tokens": limits.batch_tokens,
            "max_client_batch_size": limits.rows,
            "max_queue_tokens": limits.queue_tokens,
            "version": warmstart.__version__,
        }
    )


def _model_type(served: Served) -> dict[str, Any]:
    if served.task.name == EMBEDS:
        return {"embedding": {}}
    return {"classifier": {}} if served.task.name == CLASSIFIES else {}


async def _embed(call: Call) -> Answer:
    body = call.fields(required=("inputs",), optional=("normalize", "truncate"))
    normalize, truncate = _flag(body, "normalize", True), _flag(body, "truncate", False)
    inputs = body["inputs"]
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise Refusal(422, "field-type", "'inputs' must be a text or a list of texts", where="inputs")
    predictions = await call.predict(call.models.first(EMBEDS), inputs)
    _check_whole(predictions, truncate)

    def told() -> Any:
        vectors = np.array([prediction.embedding for prediction in predictions])  # (N, H)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if normalize:
            return (vectors / np.maximum(lengths, 1e-12)).tolist()
        if np.allclose(lengths, 1, atol=1e-5):
            what = "the model's embeddings have length 1 already; what they were is lost"
            raise parameter_unsupported("normalize", what)
        return vectors.tolist()

    return Answer(told, predictions)


async def _predict(call: Call) -> Answer:
    body = call.fields(required=("inputs",), optional=("truncate",))
    truncate, inputs = _flag(body, "truncate", False), body["inputs"]
    several = isinstance(inputs, list) and all(isinstance(item, list) for item in inputs)
    items = [_item(item) for item in inputs] if several else [_item(inputs)]
    predictions = await call.predict(call.models.first(CLASSIFIES), items)
    _check_whole(predictions, truncate)

    def told() -> Any:
        answers = [best_first(prediction.scores) for prediction in predictions]
        return answers if several else answers[0]

    return Answer(told, predictions)


def best_first(scores: dict[str, float]) -> list[dict[str, Any]]:
    """Labels with their scores, the best first."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ranked]


def _item(value: Any) -> str | tuple[str, str]:
    """A text, a list with one, or a list of a pair."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) in (1, 2) and all(isinstance(text, str) for text in value):
        return value[0] if len(value) == 1 else (value[0], value[1])
    what = "'inputs' must be a text, a pair of texts, or a list of lists of one or two texts"
    raise Refusal(422, "field-type", what, where="inputs")


def _flag(body: Any, name: str, default: bool) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(422, "field-type", f"{name!r} must be true or false", where=name)
    return value


def _check_whole(predictions: Sequence[Any], truncate: bool) -> None:
    for row, prediction in enumerate(predictions):
        if prediction.truncated and not truncate:
            fix = 'send "truncate": true to have it cut'
            raise Refusal(
                413, "input-too-long", "a text has more tokens than the model reads", where=f"row {row}", fix=fix
            )
