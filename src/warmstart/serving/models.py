"""The models of a server: what is served under which name, and the way from a request's rows to its predictions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from warmstart.engine import frozen
from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.features import Feature
from warmstart.pipeline import Pipeline
from warmstart.rows import Row, texts
from warmstart.serving.encoding import Turns, encode_in_turns, most_characters
from warmstart.serving.limits import Limits
from warmstart.serving.metrics import Metrics
from warmstart.serving.queue import RESERVED, FairQueue, Job, QueueClosedError, QueueFullError, useless
from warmstart.serving.refusal import Refusal, overloaded, too_late, unavailable
from warmstart.serving.worker import Worker

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PROBE_SECONDS = 5.0
# Characters a token has at least, about: what is being tokenized counts against the queue before its tokens are known.
_CHARACTERS_A_TOKEN = 2
# How much the newest request counts in the average of those that it was taken for, and of those that it had.
_NEWEST = 0.2


class Served:
    """One pipeline behind a queue. `ready` is False until a row went all the way, and after the worker died."""

    def __init__(
        self, name: str, pipeline: Pipeline, limits: Limits, *, metrics: Metrics, encoding: Turns,
        decoding: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.name, self.pipeline, self.task, self.limits = name, pipeline, pipeline.task, limits
        self.texts = tuple(field.name for field in self.task.fields if field.text and not field.target)
        self._metrics, self._encoding = metrics, encoding
        self._queue = FairQueue(limits.queue_tokens, told=lambda why: metrics.dropped(name, why))
        self._worker = Worker(
            name, self.task, frozen(pipeline.runtime), self._queue,
            budget=limits.batch_tokens, queue_seconds=limits.queue_seconds, pool=decoding, metrics=metrics,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._being_encoded = Counter[str]()  # tokens, by their characters, by client
        self._guessed = self._found = 0.0  # such tokens of the latest requests, and how many there turned out to be
        metrics.watch_queue(name, lambda: float(self._queue.tokens))

    def start(self) -> None:
        self._worker.start()

    def close(self) -> None:
        """Take nothing more; `join` waits for what was taken."""
        self._queue.close()

    def join(self, seconds: float) -> None:
        self._worker.join(seconds)

    @property
    def alive(self) -> bool:
        return self._worker.alive

    @property
    def works(self) -> bool:
        """Is the worker busy with requests, and not for longer than any request may take."""
        return self.alive and self._worker.works(self.limits.request_seconds)

    @property
    def backlog(self) -> float:
        """Seconds of work that wait, and of what was drawn before; 0 where nothing waits."""
        return self._worker.wait(self._queue.tokens)

    def rows(self, items: Sequence[Any]) -> list[Row]:
        """Strings, pairs of strings and objects as rows of the task.

        Raises DataError "row-not-object", "field-unknown" with the place of the item that is wrong.
        """
        rows = list(texts(list(items), names=self.texts))
        known = [field.name for field in self.task.fields if not field.target]
        for row in rows:
            if unknown := sorted(set(row) - set(known)):
                raise DataError(
                    "field-unknown",
                    f"{self.task.name} reads no such field",
                    where=dataclasses.replace(row.where, field=unknown[0][:80]),
                    fix=f"give only {', '.join(known)}",
                )
        return rows

    def check_room(self, client: str) -> None:
        """Raises Refusal "queue-full" while nothing more of this client may wait: before a body is parsed, it costs
        least."""
        encoding = int(self._being_encoded[client] * self._found / max(1.0, self._guessed))
        ahead = self._queue.ahead(client, encoding) + encoding
        if ahead and (self._queue.full or self._worker.wait(ahead) > self.limits.queue_seconds):
            raise overloaded(self._retry_after())

    async def predict(self, rows: Sequence[Row], *, client: str, deadline: float) -> list[Any]:
        """Predictions for `rows`, in their order; `deadline` as `time.monotonic` counts. Cancelling drops the work.

        Raises Refusal "queue-full", "request-too-large", "deadline-exceeded", "worker-dead"; what the task raises for
        a row it cannot encode; what the model raises where it fails at this request alone.
        """
        if not rows:
            return []
        if time.monotonic() >= deadline:
            raise too_late("the deadline had passed when the request came")
        self.check_room(client)
        job = Job(client=client, rows=rows, deadline=deadline)
        self._encoding.submit(client, self._admit(job, self._take_room(rows, client)))
        return await _answer(job)

    def _take_room(self, rows: Sequence[Row], client: str) -> int:
        """Count rows that wait for their tokens against the queue; `_admit` gives back what this returns. A client's
        first find more room, and small ones always."""
        limit = self.limits.queue_tokens
        size = max(1, min(sum(map(most_characters, rows)) // _CHARACTERS_A_TOKEN, limit))
        with self._lock:
            held = self._being_encoded.total() + self._queue.tokens
            first = not self._being_encoded[client]
            if held + size > (4 if first else 2) * limit and not (first and size <= RESERVED):
                raise overloaded(self._retry_after())
            self._being_encoded[client] += size
        return size

    def _admit(self, job: Job, size: int) -> Iterator[None]:
        """Off the event loop, in turns: encode a job's rows and let it wait in the queue. What fails is its answer."""
        features, tokens, seconds = list[Feature](), 0, 0.0
        try:
            if not self._waits(job):
                return
            started = time.monotonic()
            for feature in encode_in_turns(self.task, job.rows):
                if feature is None:
                    seconds += time.monotonic() - started
                    yield
                    if not self._waits(job):
                        return
                    started = time.monotonic()
                    continue
                features.append(feature)
                tokens += feature.length
                if tokens > self.limits.queue_tokens:
                    raise self._too_large()
            job.features = features
            self._metrics.stage(self.name, "encode", seconds + time.monotonic() - started)
            self._give_back(job.client, size, found=tokens)
            size = 0
            self._put(job)
        except BaseException as error:
            job.fail(error)
        finally:
            self._give_back(job.client, size)

    def _give_back(self, client: str, size: int, *, found: int | None = None) -> None:
        """What `_take_room` took; `found`: the tokens that there were."""
        with self._lock:
            self._being_encoded[client] -= size
            if not self._being_encoded[client]:
                del self._being_encoded[client]
            if found is not None:
                self._guessed += _NEWEST * (size - self._guessed)
                self._found += _NEWEST * (found - self._found)

    def _waits(self, job: Job) -> bool:
        """Does anybody still wait for a job whose turn it is; counted where not. Raises Refusal "deadline-exceeded",
        "stopping", "worker-dead"."""
        if self._queue.closed:
            raise self._closed()
        if why := useless(job):
            self._metrics.dropped(self.name, why)
        if why == "expired":
            raise too_late("the deadline passed while the request waited")
        return not why

    def _too_large(self) -> Refusal:
        return Refusal(
            413,
            "request-too-large",
            f"the request has more than the {self.limits.queue_tokens:,} tokens that the queue holds",
            fix="send fewer rows at once",
        )

    def _put(self, job: Job, *, beyond: bool = False) -> None:
        ahead = self._queue.ahead(job.client, job.waiting_tokens())
        if not beyond and self._worker.wait(ahead) > self.limits.queue_seconds:
            raise overloaded(self._retry_after())
        try:
            self._queue.put(job, beyond=beyond)
        except QueueFullError:
            raise overloaded(self._retry_after()) from None
        except QueueClosedError:
            raise self._closed() from None

    async def probe(self) -> None:
        """One row through the queue, the model and back, even while the queue is full. Raises what failed."""
        if not self.alive:
            raise self._closed()
        rows = [self._probe_row()]
        deadline = time.monotonic() + _PROBE_SECONDS
        features = await asyncio.get_running_loop().run_in_executor(None, lambda: list(self.task.encode(rows)))
        job = Job(client="\0probe", rows=rows, features=features, deadline=deadline, brief=True)
        self._put(job, beyond=True)
        await _answer(job)

    def _probe_row(self) -> Row:
        """A row that the task can read: its required fields, or all that are no target where it needs more."""
        wanted = [field for field in self.task.fields if not field.target]
        bare = Row({field.name: ["ready"] if field.many else "ready" for field in wanted if field.required})
        with contextlib.suppress(WarmstartError):
            list(self.task.encode([bare]))
            return bare
        return Row({field.name: "ready" if field.text and not field.many else ["ready", "not"] for field in wanted})

    def _closed(self) -> Refusal:
        if self._worker.died:
            return unavailable(f"the worker of {self.name} is dead", code="worker-dead")
        return unavailable("the server is stopping", code="stopping")

    def _retry_after(self) -> int:
        return max(1, min(60, math.ceil(self.backlog)))


async def _answer(job: Job) -> list[Any]:
    """A job's predictions, once they are there; cancelling gives it up. Raises Refusal "deadline-exceeded"."""
    try:
        async with asyncio.timeout(max(0.0, job.deadline - time.monotonic())):
            return await asyncio.wrap_future(job.future)
    except TimeoutError:
        raise too_late() from None


def check_name(name: str) -> None:
    """Raises UsageError "model-name"."""
    if not NAME.fullmatch(name):
        raise UsageError(
            "model-name",
            "this cannot be a model's name in a URL",
            value=name,
            fix="use letters, digits, dots, hyphens and underscores: -m NAME=CHECKPOINT; "
            "a path that holds a = must be there",
        )


class Models:
    """The served models by their names, the first of which answers where a protocol names none."""

    def __init__(self, pipelines: Mapping[str, Pipeline], limits: Limits, metrics: Metrics) -> None:
        """Raises UsageError "models-none", "model-name"."""
        if not pipelines:
            raise UsageError("models-none", "there is no model to serve", fix='ws.serve(ws.load("starter"))')
        for name in pipelines:
            check_name(name)
        self._encoding = Turns(2, name="warmstart-encode")
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="warmstart-decode")
        self.served = {
            name: Served(name, pipeline, limits, metrics=metrics, encoding=self._encoding, decoding=self._decoding)
            for name, pipeline in pipelines.items()
        }

    def find(self, name: str) -> Served:
        """Raises Refusal "model-unknown": a name is looked up among those served, and nowhere else."""
        if (found := self.served.get(name)) is None:
            raise Refusal(
                404, "model-unknown", "there is no such model here", fix="GET /v1/models lists those there are"
            )
        return found

    def first(self, task: str, *, named: str | None = None) -> Served:
        """The model `named`, else the first that does `task`. Raises Refusal "model-unknown", "task-not-served"."""
        if named is not None:
            found = self.find(named)
            if found.task.name == task:
                return found
        else:
            for found in self.served.values():
                if found.task.name == task:
                    return found
        what = f"no model here does {task}" if named is None else f"this model does not do {task}"
        raise Refusal(404, "task-not-served", what, fix="GET /v1/models lists the models and their tasks")

    def least_backlog(self) -> float:
        """Of the model that has least."""
        return min(served.backlog for served in self.served.values())

    def start(self) -> None:
        for served in self.served.values():
            served.start()

    def stop(self, seconds: float) -> None:
        """Run what was taken, at most for `seconds`."""
        until = time.monotonic() + seconds
        for served in self.served.values():
            served.close()
        for served in self.served.values():
            served.join(max(0.0, until - time.monotonic()))
        self._encoding.shutdown()  # what is left in there is refused, as the queues are closed
        self._decoding.shutdown(wait=False)
