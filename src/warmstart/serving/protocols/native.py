"""Our own protocol: a row or a list of rows in, a prediction or a list of predictions out, every field of them."""

from __future__ import annotations

from collections.abc import Sequence

from warmstart.serving.endpoint import Answer, Call, Endpoint
from warmstart.serving.models import Models
from warmstart.serving.schemas import any_of, array, prediction_schema, rows_of
from warmstart.tasks import as_dict


def endpoints(models: Models) -> Sequence[Endpoint]:
    """POST /v1/predict/{model}: `"a text"`, `{"text": …}`, or a list of either."""
    served = list(models.served.values())
    predictions = [prediction_schema(one.task.prediction) for one in served]
    return [
        Endpoint(
            "POST",
            "/v1/predict/{model}",
            _predict,
            "Predictions for one row or a list of rows",
            request=rows_of(served),
            response=any_of([*predictions, *(array(one) for one in predictions)]),
            places=("model",),
        )
    ]


async def _predict(call: Call) -> Answer:
    served = call.models.find(call.path["model"])
    several = isinstance(call.body, list)
    predictions = await call.predict(served, call.body if several else [call.body])
    answers = [as_dict(prediction) for prediction in predictions]
    return Answer(answers if several else answers[0], predictions)
