"""The contestant "warmstart": `ws.load`, then `list(pipe(texts))`, as anybody would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warmstart.batching import Shapes
from warmstart.engine import Runtime, predict
from warmstart.engine.graph_runtime import positions
from warmstart.features import Array, Batch
from warmstart.pipeline import Pipeline
from warmstart.rows import texts
from warmstart.tasks import as_dict
from warmstart.tasks.fill_mask import FillMask
from warmstart.tasks.rerank import Rerank
from warmstart.tasks.sentence_embedding import Embedding
from warmstart.tasks.text_classification import TextClassification
from warmstart.tasks.token_classification import TokenClassification
from warmstart.tasks.zero_shot_classification import ZeroShotClassification
from warmstart.tasks.zero_shot_embedding import ZeroShotByEmbedding
from warmstart.verbs.bench_worker import Fields
from warmstart.verbs.load import load

# What of a task its peers have to know, to do the same.
_TOLD: Mapping[type[Any], tuple[str, ...]] = {
    TextClassification: ("problem", "threshold"),
    Embedding: ("pooling", "normalize", "prompt"),
    TokenClassification: ("aggregation", "long_text", "stride"),
    FillMask: ("top_k",),
    ZeroShotClassification: ("labels", "entailment", "hypothesis_template", "multi_label", "long_text"),
    Rerank: ("activation", "long_text"),
}


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
        told = next((names for kind, names in _TOLD.items() if isinstance(task, kind)), ())
        fields = vars(task)
        return facts | {name: fields[name] for name in told}

    @property
    def model(self) -> Any:
        return None if self.exported else self.pipe.model

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        return [self.answer(prediction) for prediction in self.pipe(plain(rows))]

    def tokens(self, rows: Sequence[Fields]) -> int:
        return sum(feature.length for feature in self.pipe.task.encode(list(texts(list(rows)))))

    def positions(self, rows: Sequence[Fields], setting: int | None) -> int:
        """For a graph: what its layers compute, padding among it where the graph does not drop it."""
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
        self.seen.append(positions(self.runtime, batch))
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
    """What is compared of a prediction: the label or labels, the number, the vector, the entities, each mask's best
    token, the order of passages (of a single one, its score); else all of it."""
    if isinstance(pipe.task, TextClassification):
        return (lambda found: found.score) if pipe.task.problem == "regression" else (lambda found: found.label)
    if isinstance(pipe.task, Embedding):
        return lambda found: found.embedding
    if isinstance(pipe.task, TokenClassification):
        return lambda found: [f"{each['entity_group']} {each['start']} {each['end']}" for each in found.entities]
    if isinstance(pipe.task, FillMask):
        return lambda found: [str(candidates[0]["token"]) for candidates in found.masks]
    if isinstance(pipe.task, ZeroShotClassification | ZeroShotByEmbedding):
        return lambda found: found.labels[0]
    if isinstance(pipe.task, Rerank):
        return lambda found: _order(found.results)
    return as_dict


def _order(results: Sequence[Mapping[str, Any]]) -> Any:
    if len(results) == 1:
        return results[0]["score"]
    return [str(each["index"]) for each in results]
