"""What a server counts and times, in Prometheus' format; a registry of its own, so that several may live together."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

CONTENT_TYPE: str = CONTENT_TYPE_LATEST


class Metrics:
    """`stage` times what a request waits for: "encode", "queue", "run" and "decode", by model."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "warmstart_requests", "Requests answered", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "warmstart_request_seconds",
            "From a request's headers to the end of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "warmstart_stage_seconds", "Time in a stage", ["model", "stage"], buckets=_SECONDS, registry=registry
        )
        self._fill = Histogram(
            "warmstart_batch_fill_ratio",
            "Tokens of a batch / its budget",
            ["model"],
            buckets=_SHARES,
            registry=registry,
        )
        self._padding = Histogram(
            "warmstart_batch_padding_ratio",
            "Padding / places of a batch as it is planned; padding-free models compute none",
            ["model"],
            buckets=_SHARES,
            registry=registry,
        )
        self._tokens = Counter("warmstart_tokens", "Tokens that were run", ["model"], registry=registry)
        self._rows = Counter("warmstart_rows", "Rows that were answered", ["model"], registry=registry)
        self._dropped = Counter(
            "warmstart_dropped", "Requests dropped before they were run", ["model", "reason"], registry=registry
        )
        self._poisoned = Counter(
            "warmstart_poisoned", "Requests at which the model failed alone", ["model"], registry=registry
        )
        self._queue = Gauge("warmstart_queue_tokens", "Tokens that wait", ["model"], registry=registry)

    def watch_queue(self, model: str, tokens: Callable[[], float]) -> None:
        self._queue.labels(model).set_function(tokens)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def stage(self, model: str, stage: str, seconds: float) -> None:
        self._stages.labels(model, stage).observe(seconds)

    def batch(self, model: str, *, tokens: int, places: int, budget: int) -> None:
        """`tokens` are real, `places` are those of the padded batch."""
        self._tokens.labels(model).inc(tokens)
        self._fill.labels(model).observe(min(1.0, tokens / budget))
        self._padding.labels(model).observe(1 - tokens / places)

    def answered(self, model: str, rows: int) -> None:
        self._rows.labels(model).inc(rows)

    def dropped(self, model: str, reason: str) -> None:
        self._dropped.labels(model, reason).inc()

    def poisoned(self, model: str) -> None:
        self._poisoned.labels(model).inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
