"""What `warmstart bench` measures embeddings and rerankers against: sentence-transformers, if it is installed.

A contestant of `verbs/bench_worker.py`; nothing else imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

BATCH = 32  # its own default


@dataclass(frozen=True)
class SentenceTransformersPeer:
    """`encode` at a batch size. It sorts by characters, and pads."""

    model: Any

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Mapping[str, str]], setting: int | None) -> list[Any]:
        texts = [row["text"] for row in rows]
        with torch.inference_mode():
            vectors = self.model.encode(texts, batch_size=setting or BATCH, show_progress_bar=False)
        found: list[Any] = vectors.tolist()
        return found


@dataclass(frozen=True)
class CrossEncoderPeer:
    """`CrossEncoder.predict` over the pairs of all rows, at a batch size; then each row's passages in their order."""

    model: Any

    @property
    def facts(self) -> Mapping[str, Any]:
        return {}

    def answers(self, rows: Sequence[Mapping[str, Any]], setting: int | None) -> list[Any]:
        passages = [[row["passages"]] if isinstance(row["passages"], str) else row["passages"] for row in rows]
        pairs = [(row["query"], passage) for row, own in zip(rows, passages, strict=True) for passage in own]
        scores = iter(self.model.predict(pairs, batch_size=setting or BATCH, show_progress_bar=False).tolist())
        return [_order([next(scores) for _ in own]) for own in passages]


def start(settings: Mapping[str, Any]) -> SentenceTransformersPeer | CrossEncoderPeer:
    """`settings`: folder and device, and the task and limit of our own contestant; of a reranker its activation."""
    torch.set_num_threads(settings["threads"])
    given: dict[str, Any] = {
        "device": settings["device"],
        "model_kwargs": {"dtype": torch.float32, "use_safetensors": True},
    }
    if settings["task"] == "rerank":
        if settings["long_text"] == "windows":
            raise ValueError("a CrossEncoder cuts long passages, and ours are read by windows")
        activation = torch.nn.Sigmoid() if settings["activation"] == "sigmoid" else torch.nn.Identity()
        return CrossEncoderPeer(
            CrossEncoder(settings["folder"], max_length=settings["limit"], activation_fn=activation, **given)
        )
    model = SentenceTransformer(settings["folder"], **given)
    model.max_seq_length = settings["limit"]
    return SentenceTransformersPeer(model)


def _order(scores: Sequence[float]) -> Any:
    """The passages' places, the best first; of a single passage its score, for its place says nothing."""
    if len(scores) == 1:
        return scores[0]
    return [str(k) for k in sorted(range(len(scores)), key=lambda k: -scores[k])]
