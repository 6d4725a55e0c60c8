"""One answer as it grows: the text of a row, a piece at a time, from a task that generates."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol, runtime_checkable

from warmstart.batching import collate
from warmstart.engine.predict import Runtime, decode_row
from warmstart.errors import UsageError, WarmstartError
from warmstart.features import Batch
from warmstart.rows import Row
from warmstart.tasks import Task
from warmstart.tasks.contract import Generates
from warmstart.tasks.decoding import Answer


@runtime_checkable
class StreamingRuntime(Protocol):
    """A runtime that can run a task's `stream`."""

    def stream(self, batch: Batch) -> Generator[Sequence[Answer]]: ...


class TextStream:
    """An iterator over the pieces of an answer, which join to its text; then `prediction` is what predicting gives.

        stream = pipe.stream("Once upon a time")
        for piece in stream:
            print(piece, end="", flush=True)
        stream.prediction.finish_reason

    `truncated` and `flags` tell what was odd about the prompt, as those of the prediction do, before the first piece.
    `close` stops the answer and frees its key-value cache; so does leaving a `with` block, and letting go of the
    object. What came until then stays in `text`.
    """

    def __init__(self, task: Task, runtime: Runtime, row: Row) -> None:
        """Raises UsageError "stream-unsupported", and what the task's `encode` raises."""
        if not isinstance(task, Generates) or not isinstance(runtime, StreamingRuntime):
            raise UsageError(
                "stream-unsupported",
                f"{task.name} gives an answer at once, there is nothing to stream",
                value=task.name,
                fix="call the pipeline: pipe(row)",
            )
        self.text = ""
        self.prediction: Any = None
        self._task, self._row, self._device = task, row, runtime.device
        self._features = list(task.encode([row]))
        self.truncated = any(feature.meta["truncated"] for feature in self._features)
        self.flags: tuple[str, ...] = self._features[0].meta["flags"]
        self._steps = runtime.stream(collate(self._features, task.pads))
        self._answer: Answer | None = None

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        # No generator of ours: its frame would hold this object, and a dropped stream would wait for the collector.
        while (answers := self._step()) is not None:
            self._answer = answers[0]
            settled = self._answer.settled
            if len(settled) > len(self.text):
                piece, self.text = settled[len(self.text) :], settled
                return piece
        answer, self._answer = self._answer, None
        if answer is not None and answer.finish is not None:
            self.prediction = decode_row(self._task, self._row, self._features, [answer.outputs()])
        raise StopIteration

    def _step(self) -> Sequence[Answer] | None:
        """The answers after one more token; None at their end."""
        try:
            return next(self._steps, None)
        except MemoryError as error:
            raise WarmstartError(
                "out-of-memory",
                f"an answer to {self._features[0].length} tokens does not fit into the memory of {self._device}",
                value=self._features[0].length,
                fix='use device="cpu" or a smaller checkpoint, or lower max_new_tokens or max_length',
            ) from error

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop here. Nothing more comes, and nothing is held."""
        self._steps.close()
        self._answer = None
