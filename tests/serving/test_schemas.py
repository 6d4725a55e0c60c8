"""The schemas of every task are made from its own types, and a server of any task describes itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.serving import Arithmetic, numpy_pipeline
from warmstart.serving.limits import Limits
from warmstart.serving.metrics import Metrics
from warmstart.serving.models import Models
from warmstart.serving.protocols import huggingface, native, openai, tei
from warmstart.serving.schemas import described, prediction_schema
from warmstart.tasks import TASKS, prediction_fields


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_predictions_schema_has_its_fields_and_their_types(name: str) -> None:
    kind = TASKS[name].prediction
    schema: dict[str, Any] = dict(prediction_schema(kind))
    assert tuple(schema["properties"]) == prediction_fields(kind)
    assert schema["properties"]["tokens"]["type"] == "integer"
    assert schema["properties"]["truncated"]["type"] == "boolean"
    assert "$ref" not in json.dumps(schema)  # it stands alone, wherever it is put


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_server_of_any_task_describes_itself(name: str) -> None:
    light = numpy_pipeline()
    task = TASKS[name](light.tokenizer)  # type: ignore[call-arg]
    pipe = type(light)(model=None, tokenizer=light.tokenizer, task=task, runtime=Arithmetic(), name=name)
    models = Models({name: pipe}, Limits(), Metrics())
    endpoints = [one for protocol in (native, huggingface, openai, tei) for one in protocol.endpoints(models)]
    page = described(endpoints, models, keys=True)
    assert json.loads(json.dumps(page)) == page
    assert ("/v1/embeddings" in page["paths"]) == ("/embed" in page["paths"]) == (name == "sentence-embedding")
    assert ("/predict" in page["paths"]) == (name == "text-classification")
    row = page["paths"][f"/v1/predict/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = {field.name for field in task.fields if not field.target}
    shapes = [shape for shape in _objects(row) if shape["properties"].keys() == fields]
    assert shapes and not shapes[0]["additionalProperties"]
    required = {field.name for field in task.fields if field.required and not field.target and not field.instead}
    assert set(shapes[0]["required"]) == required


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for one in schema for found in _objects(one)]
    if not isinstance(schema, dict):
        return []
    inner = [found for value in schema.values() for found in _objects(value)]
    return [schema, *inner] if "properties" in schema else inner
