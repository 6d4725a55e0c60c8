"""What `warmstart bench` measures against: `transformers.pipeline`, and the loop that textbooks show.

Contestants of `verbs/bench_worker.py`. Each runs as its own documentation says, in inference mode, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

Fields = Mapping[str, str]
BATCH = 32  # what textbooks take


@dataclass(frozen=True)
class PipelinePeer:
    """`transformers.pipeline("text-classification")` at a batch size."""

    pipe: Any
    model: Any
    options: Mapping[str, Any]
    answer: Callable[[Any], Any]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        texts = [row["text"] if "text_pair" not in row else dict(row) for row in rows]
        with torch.inference_mode():
            return [self.answer(found) for found in self.pipe(texts, batch_size=setting or BATCH, **self.options)]


@dataclass(frozen=True)
class TextbookPeer:
    """Tokenize a batch with padding, run the model, take the answer; batches in order of arrival."""

    tokenizer: Any
    model: Any
    limit: int
    prompt: str
    decide: Callable[[Any, Any], list[Any]]  # the model's output and the attention mask (B, T) → answers

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Fields], setting: int | None) -> list[Any]:
        with torch.inference_mode():
            return [answer for batch in _batches(rows, setting or BATCH) for answer in self._run(batch)]

    def _run(self, rows: Sequence[Fields]) -> list[Any]:
        texts = [self.prompt + row["text"] for row in rows]
        pairs = [row["text_pair"] for row in rows] if all("text_pair" in row for row in rows) else None
        inputs = self.tokenizer(
            texts, pairs, padding=True, truncation=True, max_length=self.limit, return_tensors="pt"
        ).to(self.model.device)
        return self.decide(self.model(**inputs), inputs["attention_mask"])


def start(settings: Mapping[str, Any]) -> PipelinePeer | TextbookPeer:
    """`settings`: peer ("pipeline" or "textbook"), folder, device, and the facts of our own contestant."""
    torch.set_num_threads(settings["threads"])
    classifies = settings["task"] == "text-classification"
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    model = auto.from_pretrained(settings["folder"], dtype=torch.float32, use_safetensors=True).eval()
    model = model.to(settings["device"])
    tokenizer = AutoTokenizer.from_pretrained(settings["folder"])
    if tokenizer.pad_token is None:
        # What everybody writes for such a checkpoint; without it neither peer can make a batch.
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    if settings["peer"] == "textbook":
        decide = _labels(model, settings) if classifies else _vectors(settings)
        return TextbookPeer(tokenizer, model, settings["limit"], settings.get("prompt", ""), decide)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device=settings["device"])
    options: dict[str, Any] = {"truncation": True, "max_length": settings["limit"]}
    problem = settings["problem"]
    if problem == "regression":
        return PipelinePeer(pipe, model, options | {"function_to_apply": "none"}, lambda found: found["score"])
    if problem == "multi":
        several = {"top_k": None, "function_to_apply": "sigmoid"}
        order, least = {label: i for i, label in model.config.id2label.items()}, settings["threshold"]
        return PipelinePeer(
            pipe, model, options | several,
            lambda found: sorted((one["label"] for one in found if one["score"] >= least), key=order.__getitem__),
        )  # fmt: skip
    return PipelinePeer(pipe, model, options, lambda found: found["label"])


def _batches(rows: Sequence[Fields], size: int) -> Iterator[Sequence[Fields]]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _labels(model: Any, settings: Mapping[str, Any]) -> Callable[[Any, Any], list[Any]]:
    names = model.config.id2label
    if settings["problem"] == "regression":
        return lambda output, mask: output.logits[:, 0].tolist()
    if settings["problem"] == "multi":
        least = settings["threshold"]
        return lambda output, mask: [
            [names[i] for i, score in enumerate(scores) if score >= least]
            for scores in output.logits.sigmoid().tolist()
        ]
    return lambda output, mask: [names[i] for i in output.logits.argmax(dim=-1).tolist()]


def _vectors(settings: Mapping[str, Any]) -> Callable[[Any, Any], list[Any]]:
    def decide(output: Any, mask: Any) -> list[Any]:
        states = output.last_hidden_state  # (B, T, H)
        if settings["pooling"] == "cls":
            vectors = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        if settings["normalize"]:
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        found: list[Any] = vectors.tolist()
        return found

    return decide
