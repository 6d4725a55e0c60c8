"""The contestant "warmstart": `ws.load`, then `list(pipe(texts))`, as anybody would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.pipeline import Pipeline
from warmstart.rows import texts
from warmstart.tasks import as_dict
from warmstart.tasks.sentence_embedding import Embedding
from warmstart.tasks.text_classification import TextClassification
from warmstart.verbs.bench_worker import Fields
from warmstart.verbs.load import load


@dataclass(frozen=True)
class Own:
    """A pipeline, and what of a prediction is its answer."""

    pipe: Pipeline
    answer: Callable[[Any], Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        task = self.pipe.task
        facts: dict[str, Any] = {"task": task.name, "device": self.pipe.device, "limit": task.tokenizer.limit}
        if isinstance(task, TextClassification):
            facts |= {"problem": task.problem, "threshold": task.threshold}
        if isinstance(task, Embedding):
            facts |= {"pooling": task.pooling, "normalize": task.normalize, "prompt": task.prompt}
        return facts

    @property
    def model(self) -> Any:
        return self.pipe.model

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        return [self.answer(prediction) for prediction in self.pipe(plain(rows))]

    def tokens(self, rows: Sequence[Fields]) -> int:
        return sum(feature.length for feature in self.pipe.task.encode(list(texts(list(rows)))))


def start(settings: Mapping[str, Any]) -> Own:
    """`settings`: model, task, device and dtype, as `ws.load` takes them."""
    pipe = load(
        settings["model"], task=settings.get("task"), device=settings.get("device", "auto"),
        dtype=settings.get("dtype", "float32"),
    )  # fmt: skip
    return Own(pipe, answer_of(pipe))


def plain(rows: Sequence[Fields]) -> list[Any]:
    """A row that is one text as that text, any other as it is."""
    return [row["text"] if row.keys() == {"text"} else row for row in rows]


def answer_of(pipe: Pipeline) -> Callable[[Any], Any]:
    """What is compared of a prediction: the label or labels, the number, the vector; else all of it."""
    if isinstance(pipe.task, TextClassification):
        return (lambda found: found.score) if pipe.task.problem == "regression" else (lambda found: found.label)
    if isinstance(pipe.task, Embedding):
        return lambda found: found.embedding
    return as_dict
