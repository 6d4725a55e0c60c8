"""Our own protocol: a row or a list of rows in, a prediction or a list of predictions out, every field of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from warmstart.serving.endpoint import Answer, Call, Endpoint, Schema
from warmstart.serving.models import Models
from warmstart.serving.schemas import any_of, array, one_or_more, prediction_schema, row_schema
from warmstart.tasks import as_dict

_BUILT_ELSEWHERE = 64  # rows


def endpoints(models: Models) -> Sequence[Endpoint]:
    """POST /v1/predict/{model}: `"a text"`, `{"text": …}`, or a list of either."""
    shapes = dict[str, tuple[Schema, Schema]]()
    for name, served in models.served.items():
        prediction = prediction_schema(served.task.prediction)
        rows = one_or_more(row_schema(served.task), most=served.limits.rows)
        shapes[name] = rows, any_of([prediction, array(prediction)])
    return [
        Endpoint(
            "POST",
            "/v1/predict/{model}",
            _predict,
            "Predictions for one row or a list of rows",
            request={},
            response={},
            places=("model",),
            by_model=shapes,
        )
    ]


async def _predict(call: Call) -> Answer:
    served = call.models.find(call.path["model"])
    several = isinstance(call.body, list)
    predictions = await call.predict(served, call.body if several else [call.body])
    # The numbers of a thousand embeddings would keep the event loop from others for tens of milliseconds.
    many = len(predictions) > _BUILT_ELSEWHERE
    answers = await asyncio.to_thread(_plain, predictions) if many else _plain(predictions)
    return Answer(answers if several else answers[0], predictions)


def _plain(predictions: Sequence[Any]) -> list[dict[str, Any]]:
    return [as_dict(prediction) for prediction in predictions]
