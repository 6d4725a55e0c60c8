"""What `warmstart bench` measures against where a task is not classification: its own `transformers.pipeline`.

Contestants of `verbs/bench_worker.py`, as `peer_transformers.py` has that of classification: each runs as its own
documentation says, in inference mode, in float32. An answer is what `verbs/bench_own.py` takes of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

Row = Mapping[str, Any]
BATCH = 32
_MODELS: Mapping[str, Any] = {
    "token-classification": AutoModelForTokenClassification,
    "fill-mask": AutoModelForMaskedLM,
    "zero-shot-classification": AutoModelForSequenceClassification,
}


@dataclass(frozen=True)
class TaskPipeline:
    """A pipeline, and how rows are asked of it: (pipeline, rows, batch size) → an answer a row."""

    pipe: Any
    ask: Callable[[Any, Sequence[Row], int], list[Any]]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    @property
    def model(self) -> Any:
        return self.pipe.model

    def answers(self, rows: Sequence[Row], setting: int | None) -> list[Any]:
        with torch.inference_mode():
            return self.ask(self.pipe, rows, setting or BATCH)


def start(settings: Mapping[str, Any]) -> TaskPipeline:
    """`settings`: folder, device, and the facts of our own contestant. Raises ValueError for what no pipeline does."""
    torch.set_num_threads(settings["threads"])
    task = settings["task"]
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    tokenizer.model_max_length = settings["limit"]  # where these pipelines cut
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = _MODELS[task].from_pretrained(settings["folder"], dtype=torch.float32, use_safetensors=True).eval()
    model.config.pad_token_id = tokenizer.pad_token_id
    ask = {
        "token-classification": _entities,
        "fill-mask": _masks,
        "zero-shot-classification": _zero_shot,
    }[task](model, settings)
    return TaskPipeline(pipeline(task, model=model, tokenizer=tokenizer, device=settings["device"]), ask)


def _entities(model: Any, settings: Mapping[str, Any]) -> Callable[[Any, Sequence[Row], int], list[Any]]:
    """Each entity as "TYPE start end". Texts over the limit are read by windows where ours are."""
    if others := [label for label in model.config.id2label.values() if label[:2] not in ("B-", "I-") and label != "O"]:
        raise ValueError(f"the pipeline joins tags of BIO and IO alone, and the model has {others[0]!r}")
    options = {"aggregation_strategy": settings["aggregation"]}
    if settings["long_text"] == "windows":
        options["stride"] = settings["stride"]

    def ask(pipe: Any, rows: Sequence[Row], size: int) -> list[Any]:
        if not all("text" in row for row in rows):
            raise ValueError("rows of words are grouped otherwise by the pipeline; it reads texts")
        return [
            [f"{each['entity_group']} {each['start']} {each['end']}" for each in found]
            for found in pipe([row["text"] for row in rows], batch_size=size, **options)
        ]

    return ask


def _masks(model: Any, settings: Mapping[str, Any]) -> Callable[[Any, Sequence[Row], int], list[Any]]:
    """The best token's id for each mask. The pipeline refuses texts without one, so it is not given them."""
    options = {"top_k": settings["top_k"], "tokenizer_kwargs": {"truncation": True}}

    def ask(pipe: Any, rows: Sequence[Row], size: int) -> list[Any]:
        places = [i for i, row in enumerate(rows) if pipe.tokenizer.mask_token in row["text"]]
        answers: list[Any] = [[] for _ in rows]
        if not places:
            return answers
        found = pipe([rows[i]["text"] for i in places], batch_size=size, **options)
        for i, masks in zip(places, found if len(places) > 1 else [found], strict=True):
            several = masks if isinstance(masks[0], list) else [masks]
            answers[i] = [str(candidates[0]["token"]) for candidates in several]
        return answers

    return ask


def _zero_shot(model: Any, settings: Mapping[str, Any]) -> Callable[[Any, Sequence[Row], int], list[Any]]:
    """The best label. Rows with the same candidates are asked together, since a call takes one list of them."""
    if settings["long_text"] == "windows":
        raise ValueError("the pipeline cuts long texts, and ours are read by windows")
    options = {"hypothesis_template": settings["hypothesis_template"], "multi_label": settings["multi_label"]}

    def ask(pipe: Any, rows: Sequence[Row], size: int) -> list[Any]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(_candidates(row.get("labels") or settings["labels"]), []).append(i)
        answers: list[Any] = [None for _ in rows]
        for labels, places in groups.items():
            texts = [rows[i]["text"] for i in places]
            for i, found in zip(
                places, pipe(texts, candidate_labels=list(labels), batch_size=size, **options), strict=True
            ):
                answers[i] = found["labels"][0]
        return answers

    return ask


def _candidates(labels: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in labels.split(",")) if isinstance(labels, str) else tuple(labels)
