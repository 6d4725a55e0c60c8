"""JSON schemas from the tasks' own types, and the description of all endpoints for /openapi.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_type_hints

from pydantic import TypeAdapter

import warmstart
from warmstart.serving.access import PROBES
from warmstart.serving.endpoint import Endpoint, Schema
from warmstart.serving.models import Models
from warmstart.tasks import Task, prediction_fields

TEXT: Schema = {"type": "string"}
LONGEST_DEADLINE = 3_600_000  # of X-Timeout-Ms
# Why an operation has no answer, by its status.
_REFUSALS = {
    "400": "malformed", "403": "a host or an origin that may not ask", "431": "too large headers",
    "500": "the server failed", "503": "starting, stopping, or without its worker",
}  # fmt: skip
_REFUSALS_OF_BODIES = {
    "408": "the body did not come in time", "413": "too large", "415": "not JSON",
    "422": "a field or a row that cannot be taken", "429": "no room in the queue; see Retry-After",
    "504": "the answer was not there in time",
}  # fmt: skip
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "request_id"],
            "properties": dict.fromkeys(("message", "type", "code", "where", "next", "request_id"), TEXT),
        }
    },
}


def array(of: Schema, *, most: int | None = None) -> Schema:
    return {"type": "array", "items": of} | ({} if most is None else {"minItems": 1, "maxItems": most})


def record(properties: Mapping[str, Schema], *, required: Sequence[str] | None = None, closed: bool = True) -> Schema:
    """An object of these properties; all are required unless some are named."""
    known = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), "required": known} | (
        {"additionalProperties": False} if closed else {}
    )


def row_schema(task: Task) -> Schema:
    """A row of the task: an object of its fields, or a string for its first text."""
    fields = [field for field in task.fields if not field.target]
    properties: dict[str, Schema] = {}
    for field in fields:
        plain: Schema = {"anyOf": [TEXT, array({})]} if field.many or not field.text else TEXT
        if field.whole:
            plain = {"type": "integer", "minimum": 0}
        elif field.text and not field.many and not field.required:
            plain = {"type": ["string", "null"]}  # as if it were not there
        properties[field.name] = {**plain, "description": field.doc}
    required = [field.name for field in fields if field.required and not field.instead]
    shape = record(properties, required=required)
    return {"anyOf": [TEXT, shape]} if len(required) < 2 else shape


def prediction_schema(kind: type[Any]) -> Schema:
    """A prediction's JSON, from the types of its dataclass."""
    hints = get_type_hints(kind)
    properties = {name: TypeAdapter(hints[name]).json_schema(mode="serialization") for name in prediction_fields(kind)}
    return record(properties)


def one_or_more(of: Schema, *, most: int) -> Schema:
    return {"anyOf": [of, array(of, most=most)]}


def described(
    endpoints: Iterable[Endpoint], models: Models, *, pages: Mapping[str, str] = {}, keys: bool
) -> dict[str, Any]:
    """The OpenAPI 3.1 description of a server. `pages`: content types of what else is got, by path. Where a model's
    name stands in a path and the schemas are its own, the path is described once for each model."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        method = endpoint.method.lower()
        if not endpoint.by_model:
            paths.setdefault(endpoint.path, {})[method] = _operation(endpoint, models, keys=keys)
        for name, (request, response) in endpoint.by_model.items():
            path = endpoint.path.replace("{model}", name)
            one = replace(endpoint, path=path, places=(), request=request, response=response)
            paths.setdefault(path, {})[method] = _operation(one, models, keys=keys)
    for path, kind in pages.items():
        schema = {"schema": TEXT if kind.startswith("text/") else {}}
        paths.setdefault(path, {})["get"] = {
            "operationId": f"get {path}",
            "responses": {"200": {"description": "the file", "content": {kind: schema}}, **_refusals(False, keys)},
        }
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "warmstart", "version": warmstart.__version__},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR}} | ({"securitySchemes": schemes} if keys else {}),
    } | ({"security": [{"bearer": []}, {"key": []}]} if keys else {})


def _refusals(reads_body: bool, keys: bool) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    found = _REFUSALS | (_REFUSALS_OF_BODIES if reads_body else {}) | ({"401": "no valid API key"} if keys else {})
    return {status: {"description": why, **error} for status, why in sorted(found.items())}


def _operation(endpoint: Endpoint, models: Models, *, keys: bool) -> dict[str, Any]:
    reads_body = endpoint.request is not None
    answer = {"description": "the answer", "content": {"application/json": {"schema": dict(endpoint.response)}}}
    responses = {"200": answer, **_refusals(reads_body, keys)}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()} {endpoint.path}",
        "responses": responses,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _place(name, models)} for name in endpoint.places
        ],
    }
    if endpoint.places or "model" in (endpoint.request or {}).get("properties", {}):
        responses["404"] = {**responses["400"], "description": "no such model, or none that does this"}
    if endpoint.path in PROBES and keys:
        del responses["401"]
        operation["security"] = []
    if endpoint.request is not None:
        operation["parameters"].append(
            {
                "name": "X-Timeout-Ms",
                "in": "header",
                "description": "milliseconds from now after which the answer is of no use",
                "schema": {"type": "integer", "minimum": 1, "maximum": LONGEST_DEADLINE},
            }
        )
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": dict(endpoint.request)}},
        }
    return operation


def _place(name: str, models: Models) -> Schema:
    return {"type": "string", "enum": sorted(models.served)} if name == "model" else TEXT


def any_of(schemas: Iterable[Schema]) -> Schema:
    """One of several shapes, each named once."""
    found: list[Schema] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    return found[0] if len(found) == 1 else {"anyOf": found}
