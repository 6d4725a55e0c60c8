"""Our own protocol: a row or a list of rows in, a prediction or a list of predictions out, every field of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from warmstart.serving.endpoint import Answer, Call, Endpoint, Schema
from warmstart.serving.models import Models
from warmstart.serving.schemas import any_of, array, one_or_more, prediction_schema, row_schema
from warmstart.tasks import as_dict


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

    def told() -> Any:
        answers = [as_dict(prediction) for prediction in predictions]
        return answers if several else answers[0]

    return Answer(told, predictions)
