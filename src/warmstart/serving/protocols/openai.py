"""OpenAI's embeddings and list of models, as its own clients call them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from warmstart.serving.endpoint import Answer, Call, Endpoint, parameter_unsupported
from warmstart.serving.models import Models, Served
from warmstart.serving.refusal import Refusal
from warmstart.serving.schemas import TEXT, array, one_or_more, record

TASK = "sentence-embedding"
_FIELD = record({"name": TEXT, "doc": TEXT, "required": {"type": "boolean"}, "list": {"type": "boolean"}})
_MODEL = record(
    {
        "id": TEXT,
        "object": TEXT,
        "created": {"type": "integer"},
        "owned_by": TEXT,
        "task": TEXT,
        "fields": array(_FIELD),
    }
)


def endpoints(models: Models) -> Sequence[Endpoint]:
    """GET /v1/models, GET /v1/models/{model}; POST /v1/embeddings where a model embeds."""
    listed = record({"object": TEXT, "data": array(_MODEL)})
    found = [
        Endpoint("GET", "/v1/models", _list, "The models that are served", response=listed),
        Endpoint("GET", "/v1/models/{model}", _one, "One of them", response=_MODEL, places=("model",)),
    ]
    embedding = [served for served in models.served.values() if served.task.name == TASK]
    if embedding:
        request = record(
            {
                "model": {"enum": [served.name for served in embedding]},
                "input": one_or_more(TEXT, most=embedding[0].limits.rows),
                "encoding_format": {"enum": ["float", "base64"]},
                "dimensions": {"enum": [None], "description": "no other than the model has: leave it out"},
                "user": {"type": ["string", "null"]},
            },
            required=["model", "input"],
        )
        item = record(
            {
                "object": TEXT,
                "index": {"type": "integer"},
                "embedding": {"anyOf": [array({"type": "number"}), TEXT]},
                "truncated": {"type": "boolean"},
            }
        )
        usage = record({"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}})
        answer = record({"object": TEXT, "model": TEXT, "data": array(item), "usage": usage})
        summary = "The embeddings of texts"
        found.append(Endpoint("POST", "/v1/embeddings", _embed, summary, request=request, response=answer))
    return found


def _described(served: Served) -> dict[str, Any]:
    """OpenAI's fields, and what a row of the model holds: the page at / draws its boxes from it."""
    fields = [
        {
            "name": field.name,
            "doc": field.doc,
            "required": field.required,
            "list": field.many or not field.text,
        }
        for field in served.task.fields
        if not field.target
    ]
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "warmstart",
        "task": served.task.name,
        "fields": fields,
    }


async def _list(call: Call) -> Answer:
    return Answer(lambda: {"object": "list", "data": [_described(served) for served in call.models.served.values()]})


async def _one(call: Call) -> Answer:
    served = call.models.find(call.path["model"])
    return Answer(lambda: _described(served))


async def _embed(call: Call) -> Answer:
    body = call.fields(required=("model", "input"), optional=("encoding_format", "dimensions", "user"))
    name, texts, form = body["model"], body["input"], body.get("encoding_format", "float")
    if not isinstance(name, str):
        raise Refusal(422, "field-type", "'model' must be a text", where="model", fix="GET /v1/models lists them")
    served = call.models.first(TASK, named=name)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        fix = "token ids are not taken: they would be of another tokenizer"
        raise Refusal(422, "field-type", "'input' must be a text or a list of texts", where="input", fix=fix)
    if form not in ("float", "base64"):
        raise Refusal(422, "field-value", "'encoding_format' is float or base64", where="encoding_format")
    if not isinstance(body.get("user"), str | None):
        raise Refusal(422, "field-type", "'user' must be a text; nothing is done with it", where="user")
    predictions = await call.predict(served, texts)
    width = len(predictions[0].embedding)
    if body.get("dimensions") not in (None, width):
        raise parameter_unsupported("dimensions", f"the model's embeddings have {width} dimensions")

    def told() -> Any:
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(prediction.embedding) if form == "base64" else prediction.embedding,
                "truncated": prediction.truncated,
            }
            for index, prediction in enumerate(predictions)
        ]
        tokens = sum(prediction.tokens for prediction in predictions)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "model": served.name, "data": data, "usage": usage}

    return Answer(told, predictions)


def _packed(embedding: Sequence[float]) -> str:
    """Little-endian 32-bit floats in base64: what OpenAI's client asks for and unpacks by itself."""
    return base64.b64encode(np.asarray(embedding, dtype="<f4").tobytes()).decode("ascii")
