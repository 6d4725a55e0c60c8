"""What a person holds: model + tokenizer + task + runtime."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from warmstart.engine import MAX_TOKENS, Runtime, TextStream, predict
from warmstart.errors import WarmstartError
from warmstart.rows import Row, texts
from warmstart.tasks import Task
from warmstart.tasks.contract import Generates, NeedsExam

log = logging.getLogger("warmstart")


class _Model:
    """What `pipe.model` reads: the model, or the error of a pipeline over a graph, which has none."""

    def __get__(self, pipeline: Pipeline | None, owner: type[Pipeline]) -> Any:
        if pipeline is None:
            raise AttributeError("model")  # so that dataclass sees no default
        model = pipeline.__dict__["model"]
        if isinstance(model, WarmstartError):
            raise copy.copy(model)  # a raised error keeps its traceback
        return model

    def __set__(self, pipeline: Pipeline, model: Any) -> None:
        pipeline.__dict__["model"] = model


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A loaded checkpoint, ready for any verb.

    `model` and `tokenizer` are the very objects that transformers' Auto classes give; `task` knows the labels. Over an
    exported checkpoint `tokenizer` is our own, and `model` raises CheckpointError "exported-has-no-model".

        pipe = ws.load("starter")
        pipe("I love LangChain!")                          # one row → one prediction
        pipe(["good", ("a pair's first", "its second")])    # a list → a list
        pipe(f"take {n}" for n in range(10**6))            # an iterator → an iterator, with bounded memory
    """

    model: _Model = _Model()
    tokenizer: Any
    task: Task
    runtime: Runtime
    name: str  # as it was asked for
    notes: tuple[str, ...] = ()  # what loading guessed, dropped or repaired

    def __call__(self, inputs: Any, *, max_tokens: int = MAX_TOKENS) -> Any:
        """Predict: a text, a pair `(text, text_pair)` or a row → a prediction; a list → a list; else an iterator.

        Raises DataError for a row that is none, with its index and field.
        """
        if isinstance(inputs, str | tuple | Mapping):
            [prediction] = self.predict_rows(self._rows([inputs]), max_tokens=max_tokens)
            return prediction
        predictions = self.predict_rows(self._rows(inputs), max_tokens=max_tokens)
        return list(predictions) if isinstance(inputs, list) else predictions

    def stream(self, prompt: Any) -> TextStream:
        """The answer to one prompt (a text or a row), a piece of text at a time, from a task that generates.

            for piece in pipe.stream("Once upon a time"):
                print(piece, end="", flush=True)

        Raises UsageError "stream-unsupported", "stream-with-beams"; DataError as predicting does.
        """
        [row] = self._rows([prompt])
        return TextStream(self.task, self.runtime, row)

    def _rows(self, inputs: Iterable[Any]) -> Iterator[Row]:
        return texts(inputs, names=tuple(field.name for field in self.task.fields if field.text and not field.target))

    def predict_rows(self, rows: Iterable[Row], *, max_tokens: int = MAX_TOKENS) -> Iterator[Any]:
        """Predictions for rows as `rows.read` gives them. Says at the end how many texts were cut."""
        return self._counting_cuts(predict(self.task, self.runtime, rows, max_tokens=max_tokens))

    def judge_rows(self, rows: Iterable[Row], *, max_tokens: int = MAX_TOKENS) -> Iterator[Any]:
        """Predictions for labelled rows, as `task.score` reads them: `predict_rows` for all but a task with an exam.

        Of a task that generates, `task.encode(rows, train=True)`, by which rows are checked before, says what is cut.
        """
        encode = self.task.exam if isinstance(self.task, NeedsExam) else None
        predictions = predict(self.task, self.runtime, rows, max_tokens=max_tokens, encode=encode)
        is_said = encode is not None and isinstance(self.task, Generates)
        return predictions if is_said else self._counting_cuts(predictions)

    def _counting_cuts(self, predictions: Iterator[Any]) -> Iterator[Any]:
        cut = total = 0
        try:
            for prediction in predictions:
                total += 1
                cut += prediction.truncated
                yield prediction
        finally:  # also where the caller stops early, or a later row is bad
            if cut:
                limit, instead = self.task.tokenizer.limit, "long_text=windows reads all of a text"
                if isinstance(self.task, Generates):
                    limit, instead = self.task.prompt_limit, "long_text=error refuses such texts"
                said = "%s of %s texts were longer than %s tokens and were cut; %s"
                log.warning(said, f"{cut:,}", f"{total:,}", limit, instead)

    @property
    def device(self) -> str:
        """Where the model runs."""
        return self.runtime.device

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, task={self.task.name!r}, device={self.device!r})"
