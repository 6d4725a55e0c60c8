"""Hugging Face's inference protocol: {"inputs": …, "parameters": {…}}, with the answers of its tasks.

InferenceClient(model="http://127.0.0.1:8000/models/starter").text_classification("I love LangChain!")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warmstart.serving.endpoint import Answer, Call, Endpoint, Schema, parameter_unsupported
from warmstart.serving.models import Models, Served
from warmstart.serving.refusal import Refusal
from warmstart.serving.schemas import TEXT, any_of, array, one_or_more, prediction_schema, record, row_schema
from warmstart.tasks import as_dict

# Parameters that ask for what we do in any case.
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "truncate": (True,),
    "truncation": (True,),
    "truncation_direction": ("right",),
    "return_full_text": (False,),
    "details": (False,),
    "decoder_input_details": (False,),
    "stream": (False,),
}
# Its names of our options.
_OPTIONS: Mapping[str, str] = {"aggregation_strategy": "aggregation", "max_answer_len": "max_answer_tokens"}


def endpoints(models: Models) -> Sequence[Endpoint]:
    """POST / for the first model, POST /models/{model} for any."""
    first = next(iter(models.served.values()))
    shapes = {name: _schemas(served) for name, served in models.served.items()}
    summary = "Hugging Face's inference protocol"
    request, response = shapes[first.name]
    return [
        Endpoint("POST", "/", _infer, summary, request=request, response=response),
        Endpoint(
            "POST", "/models/{model}", _infer, summary, request={}, response={}, places=("model",), by_model=shapes
        ),
    ]


def _schemas(served: Served) -> tuple[Schema, Schema]:
    """Of a request to a model, and of its answer."""
    shape = _shape(served)
    inputs = one_or_more(row_schema(served.task), most=served.limits.rows)
    parameters: dict[str, Schema] = {name: {"enum": [None, *values]} for name, values in _harmless(served).items()}
    parameters |= shape.parameters
    request = record(
        {
            "inputs": inputs,
            "parameters": {"anyOf": [record(parameters, required=()), {"type": "null"}]},
            "options": {"enum": [None, {}]},
        },
        required=["inputs"],
    )
    one = shape.schema(prediction_schema(served.task.prediction)["properties"])
    return request, array(one) if shape.nested else any_of([one, array(one)])


def _harmless(served: Served) -> dict[str, tuple[Any, ...]]:
    """Parameters that ask for what the model does in any case: its options as it is served with them. Clients send
    some of them unasked."""
    options = {name: vars(served.task)[name] for name in served.task.option_names}
    options |= {name: options[ours] for name, ours in _OPTIONS.items() if ours in options}
    return {**_HARMLESS, **{name: (value,) for name, value in options.items() if isinstance(value, str | int | float)}}


def _shape(served: Served) -> _Shape:
    return _SHAPES.get(served.task.name, _Shape(lambda prediction, _: as_dict(prediction), record))


async def _infer(call: Call) -> Answer:
    body = call.fields(required=("inputs",), optional=("parameters", "options"))
    named = call.path.get("model")
    served = next(iter(call.models.served.values())) if named is None else call.models.find(named)
    parameters = {} if body.get("parameters") is None else body["parameters"]
    if not isinstance(parameters, dict):
        raise Refusal(422, "field-type", "'parameters' must be an object", where="parameters")
    if body.get("options") not in (None, {}):
        raise parameter_unsupported("options", "there are no options: nothing is cached and the model is always loaded")
    shape, harmless = _shape(served), _harmless(served)
    for name, value in parameters.items():
        done_anyway = any(_is_same(value, each) for each in harmless.get(name, ()))
        if value is not None and name not in shape.parameters and not done_anyway:
            raise parameter_unsupported(name, _why_not(served, harmless.get(name)))
    several = isinstance(body["inputs"], list)
    items = [shape.row(item, parameters) for item in (body["inputs"] if several else [body["inputs"]])]
    predictions = await call.predict(served, items)
    # One text, too, is answered with a list where Hugging Face's servers do so: classified, or generated for it.
    listed = several or shape.nested

    def told() -> Any:
        answers = [shape.answer(prediction, parameters) for prediction in predictions]
        return answers if listed else answers[0]

    return Answer(told, predictions)


def _is_same(value: Any, served: Any) -> bool:
    """As JSON's schemas have it: 1 is 1.0, and true is neither."""
    return bool(value == served) and isinstance(value, bool) is isinstance(served, bool)


def _why_not(served: Served, values: tuple[Any, ...] | None) -> str:
    if values is None:
        return f"{served.task.name} takes no such parameter in a request"
    return f"{served.name} is served with {' or '.join(map(repr, values))}"


@dataclass(frozen=True)
class _Shape:
    """How a task's prediction is answered; the schema of that, from those of the prediction's fields; the parameters it
    takes; what they put into a row."""

    answer: Callable[[Any, Mapping[str, Any]], Any]
    schema: Callable[[Mapping[str, Schema]], Schema]
    parameters: Mapping[str, Schema] = field(default_factory=dict)
    nested: bool = False
    row: Callable[[Any, Mapping[str, Any]], Any] = lambda item, _: item


def _classes(prediction: Any, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    top = parameters.get("top_k")
    if top is not None and (type(top) is not int or top < 1):
        raise Refusal(422, "field-value", "'top_k' must be a whole number from 1", where="parameters.top_k")
    ranked = sorted(prediction.scores.items(), key=lambda item: -item[1])
    return [{"label": label, "score": score} for label, score in ranked[:top]]


def _masks(prediction: Any, parameters: Mapping[str, Any]) -> Any:
    masks = [[dict(candidate) for candidate in mask] for mask in prediction.masks]
    return masks[0] if len(masks) == 1 else masks


def _span(prediction: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(prediction, name) for name in _SPAN}


def _zero_shot(prediction: Any, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    pairs = zip(prediction.labels, prediction.scores, strict=True)
    return [{"label": label, "score": score} for label, score in pairs]


def _with_candidates(item: Any, parameters: Mapping[str, Any]) -> Any:
    labels = parameters.get("candidate_labels")
    if labels is None:
        return item
    return {**item, "labels": labels} if isinstance(item, dict) else {"text": item, "labels": labels}


_SPAN = ("answer", "score", "start", "end")
# A client of text generation, one of summarization and one of translation each read a name of their own.
_WRITTEN = ("generated_text", "summary_text", "translation_text")
_TOP: Schema = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
_LABELS: Schema = {"anyOf": [TEXT, array(TEXT, most=1_000), {"type": "null"}]}
_RANKED = array(record({"label": TEXT, "score": {"type": "number"}}))
_SHAPES: Mapping[str, _Shape] = {
    "text-classification": _Shape(_classes, lambda _: _RANKED, parameters={"top_k": _TOP}, nested=True),
    "token-classification": _Shape(
        lambda prediction, _: [dict(entity) for entity in prediction.entities], lambda known: known["entities"]
    ),
    "question-answering": _Shape(_span, lambda known: record({name: known[name] for name in _SPAN})),
    "sentence-embedding": _Shape(lambda prediction, _: prediction.embedding, lambda known: known["embedding"]),
    "rerank": _Shape(
        lambda prediction, _: [dict(result) for result in prediction.results], lambda known: known["results"]
    ),
    "fill-mask": _Shape(_masks, lambda known: any_of([known["masks"], known["masks"]["items"]])),
    "zero-shot-classification": _Shape(
        _zero_shot, lambda _: _RANKED, parameters={"candidate_labels": _LABELS}, row=_with_candidates
    ),
    "text-generation": _Shape(
        lambda prediction, _: {"generated_text": prediction.generated_text},
        lambda known: record({"generated_text": known["generated_text"]}),
        nested=True,
    ),
    "text-to-text": _Shape(
        lambda prediction, _: dict.fromkeys(_WRITTEN, prediction.text),
        lambda known: record(dict.fromkeys(_WRITTEN, known["text"])),
        nested=True,
    ),
}
