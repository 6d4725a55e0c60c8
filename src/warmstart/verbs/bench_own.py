"""The contestant "warmstart": `ws.load`, then `list(pipe(texts))`, as anybody would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.batching import Shapes
from warmstart.engine import Runtime, predict
from warmstart.features import Array, Batch
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
    exported: bool = False  # a graph, which has no torch module

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
        return None if self.exported else self.pipe.model

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        return [self.answer(prediction) for prediction in self.pipe(plain(rows))]

    def tokens(self, rows: Sequence[Fields]) -> int:
        return sum(feature.length for feature in self.pipe.task.encode(list(texts(list(rows)))))

    def positions(self, rows: Sequence[Fields], setting: int | None) -> int:
        """For a graph: what it is handed, padding among it."""
        counted = _Counted(self.pipe.runtime, [])
        for _ in predict(self.pipe.task, counted, texts(list(rows))):
            pass
        return sum(counted.seen)

    def gemm_peak(self) -> float | None:
        return None  # a graph's products cannot be called alone


@dataclass(frozen=True)
class _Counted:
    """A runtime that remembers how many token positions each batch had."""

    runtime: Runtime
    seen: list[int]

    @property
    def device(self) -> str:
        return self.runtime.device

    @property
    def shapes(self) -> Shapes:
        return self.runtime.shapes

    def run(self, batch: Batch) -> dict[str, Array]:
        self.seen.append(batch.inputs["input_ids"].size)
        return self.runtime.run(batch)


def start(settings: Mapping[str, Any]) -> Own:
    """`settings`: model, task, device and dtype, as `ws.load` takes them; exported, if the model is a graph."""
    pipe = load(
        settings["model"], task=settings.get("task"), device=settings.get("device", "auto"),
        dtype=settings.get("dtype", "float32"),
    )  # fmt: skip
    return Own(pipe, answer_of(pipe), settings.get("exported", False))


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
