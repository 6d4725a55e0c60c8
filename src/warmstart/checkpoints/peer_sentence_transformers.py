"""What `warmstart bench` measures embeddings against: `SentenceTransformer.encode`, if it is installed.

A contestant of `verbs/bench_worker.py`; nothing else imports this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

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


def start(settings: Mapping[str, Any]) -> SentenceTransformersPeer:
    """`settings`: folder and device, and the limit of our own contestant."""
    torch.set_num_threads(settings["threads"])
    model = SentenceTransformer(
        settings["folder"], device=settings["device"],
        model_kwargs={"dtype": torch.float32, "use_safetensors": True},
    )  # fmt: skip
    model.max_seq_length = settings["limit"]
    return SentenceTransformersPeer(model)
