"""What a protocol is made of: endpoints, what they are given, and what they give back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warmstart.serving.models import Models, Served
from warmstart.serving.refusal import Refusal

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """One request, its body parsed. `deadline` as `time.monotonic` counts."""

    models: Models
    client: str
    deadline: float
    path: Mapping[str, str]  # what stands in the path's places
    body: Any = None

    async def predict(self, served: Served, items: Sequence[Any]) -> list[Any]:
        """Predictions for texts, pairs and rows, by the queue of `served`.

        Raises Refusal "rows-none", "rows-too-many", and what `Served.rows` and `Served.predict` raise.
        """
        if not items:
            raise Refusal(400, "rows-none", "the request holds no row", fix="send at least one")
        if len(items) > served.limits.rows:
            what = f"the request holds {len(items):,} rows, and {served.limits.rows:,} are the most"
            raise Refusal(413, "rows-too-many", what, fix="send them in several requests")
        return await served.predict(served.rows(items), client=self.client, deadline=self.deadline)

    def fields(self, *, required: Sequence[str], optional: Sequence[str] = ()) -> Mapping[str, Any]:
        """The body, if it is an object with these fields and no other. Raises Refusal "body-not-object",
        "field-missing", "field-unknown"."""
        if not isinstance(self.body, dict):
            raise Refusal(422, "body-not-object", "the body must be a JSON object", fix=f"with {', '.join(required)}")
        for name in required:
            if name not in self.body:
                raise Refusal(422, "field-missing", f"the body has no {name!r}", fix=f"give {name!r}")
        for name in self.body:
            if name not in required and name not in optional:
                fix = f"known: {', '.join([*required, *optional])}"
                raise Refusal(
                    422, "field-unknown", "the body has a field that means nothing here", where=name[:80], fix=fix
                )
        return self.body


@dataclass(frozen=True)
class Answer:
    """What is sent: `told` gives it as plain values, in a thread where it is made of many `predictions`. Headers tell
    whether their texts were cut. `told` may raise a Refusal."""

    told: Callable[[], Any]
    predictions: Sequence[Any] = ()


@dataclass(frozen=True)
class Endpoint:
    """One method on one path, and its schemas for /openapi.json. `request` None: it reads no body. Where they differ by
    the model in the path, `by_model` has them, (request, response) by its name."""

    method: str
    path: str  # as Starlette writes places: /v1/predict/{model}
    handle: Callable[[Call], Awaitable[Answer]]
    summary: str
    response: Schema
    request: Schema | None = None
    places: tuple[str, ...] = field(default=())  # the names in the path
    by_model: Mapping[str, tuple[Schema, Schema]] = field(default_factory=dict)


def parameter_unsupported(name: str, what: str) -> Refusal:
    """A parameter that would change the answer and cannot: said, not ignored."""
    return Refusal(422, "parameter-unsupported", what, where=name[:80], fix=f"leave {name[:80]!r} out")
