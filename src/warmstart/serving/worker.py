"""One thread a model: draws what waits, plans it into batches, runs them, and lets rows be decoded elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor, InvalidStateError
from typing import Any

from warmstart.engine import Runtime, by_row, decode_row, run_batch
from warmstart.features import Array, Feature
from warmstart.serving.metrics import Metrics
from warmstart.serving.queue import FairQueue, Job, Piece
from warmstart.serving.refusal import unavailable
from warmstart.tasks import Task
from warmstart.tasks.contract import Generates

log = logging.getLogger("warmstart")

# How much the latest draw counts in the estimate of tokens a second, and where the estimate begins.
_NEWEST, _FIRST_RATE = 0.2, 5_000.0
# Seconds of work in a draw, which whoever comes next must wait for; and the tokens that are drawn however slow it is.
_DRAW_SECONDS, _SMALLEST_DRAW = 0.25, 512


class Worker:
    """Runs one model's queue until it is closed. `alive` says whether anybody does."""

    def __init__(
        self,
        name: str,
        task: Task,
        runtime: Runtime,
        queue: FairQueue,
        *,
        budget: int,
        queue_seconds: float,
        pool: Executor,
        metrics: Metrics,
    ) -> None:
        self._name, self._task, self._runtime, self._queue = name, task, runtime, queue
        self._draw, self._pool, self._metrics = budget, pool, metrics
        self._draw_seconds = min(_DRAW_SECONDS, queue_seconds / 4)  # else a draw alone would be too long a wait
        self._budget = min(budget, runtime.shapes.max_tokens)
        self._rows_at_most = task.rows_at_most if isinstance(task, Generates) else None  # in a batch that generates
        self._rate = _FIRST_RATE
        self._undone = 0  # tokens that were drawn and not run, or not long ago
        self._run_since = 0  # tokens of those that were run
        self._drew = math.inf  # when what it works on was drawn
        self.died = False
        self._thread = threading.Thread(target=self._work, name=f"warmstart-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def works(self, seconds: float) -> bool:
        """Is it at work, on what it drew no longer ago than that."""
        return 0 <= time.monotonic() - self._drew <= seconds

    def seconds(self, tokens: float) -> float:
        """How long so many tokens take, by what was measured lately."""
        return tokens / self._rate

    def wait(self, ahead: int) -> float:
        """Seconds until a job is run before which so many tokens wait, at most about: for those, and for what was drawn
        before. A job that the next draw holds waits for nothing where answers grow side by side."""
        if self._rows_at_most:
            ahead -= self._drawn_tokens()
        return self.seconds(ahead + self._undone) if ahead > 0 else 0.0

    def _work(self) -> None:
        pieces: list[Piece] | None = []
        try:
            while (pieces := self._queue.take(self._drawn_tokens(), rows_at_most=self._rows_at_most)) is not None:
                self._drew = time.monotonic()
                self._undone, self._run_since = sum(piece.feature.length for piece in pieces), 0
                self._run_all(pieces)
                self._undone = 0
                self._drew = math.inf
        except BaseException as error:  # a thread's last words: whoever waits must not wait for ever
            self.died = True
            log.critical("the worker of %s died: %r", self._name, error)
            self._queue.close()
            while pieces is not None:
                for piece in pieces:
                    piece.job.fail(unavailable("the model's worker died", code="worker-dead"))
                pieces = self._queue.take(1 << 30)

    def _run_all(self, pieces: Sequence[Piece]) -> None:
        started = time.monotonic()
        for piece in pieces:
            if piece.index == 0:
                self._metrics.stage(self._name, "queue", started - piece.job.waiting_since)
        tokens = 0  # that were run, but for probes: a row now and then is no measure of speed
        for members in self._runtime.shapes.plan([piece.feature.length for piece in pieces], max_tokens=self._budget):
            batch = [pieces[i] for i in members if not pieces[i].job.gone]
            if batch:
                self._run(batch)
                tokens += sum(piece.feature.length for piece in batch if not piece.job.brief)
        self._measured(tokens, time.monotonic() - started)

    def _measured(self, tokens: int, seconds: float) -> None:
        """Of a draw. What is small says only what the speed is at least: most of its time is not its tokens'."""
        if not (tokens and seconds):
            return
        rate = tokens / seconds
        if tokens >= _SMALLEST_DRAW or seconds >= _DRAW_SECONDS or rate > self._rate:
            self._rate += _NEWEST * (rate - self._rate)

    def _drawn_tokens(self) -> int:
        return min(self._draw, max(_SMALLEST_DRAW, int(self._draw_seconds * self._rate)))

    def _run(self, batch: Sequence[Piece]) -> None:
        started = time.monotonic()
        features = [piece.feature for piece in batch]
        if self._rows_at_most:  # what generates lets go of an answer whose client leaves meanwhile
            features = [dataclasses.replace(piece.feature, wanted=piece.job.wanted) for piece in batch]
        results = run_isolating(self._task, self._runtime, features)
        self._metrics.stage(self._name, "run", time.monotonic() - started)
        lengths = [feature.length for feature in features]
        self._count_run(sum(lengths))
        places = max(1, self._runtime.shapes.width(len(lengths), max(lengths)) * len(lengths))
        self._metrics.batch(self._name, tokens=sum(lengths), places=places, budget=self._budget)
        complete = list[Job]()
        for piece, result in zip(batch, results, strict=True):
            job = piece.job
            if isinstance(result, Exception):
                if not job.gone:
                    log.error("%s failed at one request: %r", self._name, result)
                    self._metrics.poisoned(self._name)
                job.fail(result)
                continue
            job.outputs[piece.index] = result
            if job.complete and not job.gone:
                complete.append(job)
        if complete:  # handed over at once: each time costs as much as decoding a row
            self._pool.submit(self._decode_all, complete)

    def _count_run(self, tokens: int) -> None:
        """No more often than a draw mostly lasts: each time there is room, more is parsed than finds it."""
        self._run_since += tokens
        if self.seconds(self._run_since) >= self._draw_seconds:
            self._undone -= self._run_since
            self._run_since = 0

    def _decode_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if not job.gone:
                self._decode(job)

    def _decode(self, job: Job) -> None:
        started = time.monotonic()
        try:
            predictions = decode(self._task, job)
        except BaseException as error:
            job.fail(error)
            return
        self._metrics.stage(self._name, "decode", time.monotonic() - started)
        self._metrics.answered(self._name, len(predictions))
        try:
            job.future.set_result(predictions)
        except InvalidStateError:  # its client left meanwhile
            return


def decode(task: Task, job: Job) -> list[Any]:
    """A complete job's predictions, in the order of its rows."""
    members = by_row(job.features, len(job.rows))
    return [
        decode_row(task, row, [job.features[i] for i in found], [job.outputs[i] for i in found])
        for row, found in zip(job.rows, members, strict=True)
    ]


def run_isolating(task: Task, runtime: Runtime, features: Sequence[Feature]) -> list[dict[str, Array] | Exception]:
    """Each feature's outputs; of one at which the model fails even alone, the error. Found by halving the batch."""
    try:
        return list(run_batch(task, runtime, features))
    except Exception as error:
        if len(features) == 1:
            return [error]
    half = len(features) // 2
    return [*run_isolating(task, runtime, features[:half]), *run_isolating(task, runtime, features[half:])]
