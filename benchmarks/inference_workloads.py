"""What the inference benchmark runs over: the texts, their labels, and what a model has to compute for them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
MIXTURE = {"reviews": 1018, "questions": 500, "contexts": 240}
SEED = 0


@dataclass(frozen=True)
class Workload:
    """Texts, and for those that are reviews their label in upper case, else None."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[str | None, ...]

    @property
    def rows(self) -> list[dict[str, str]]:
        return [{"text": text} for text in self.texts]

    def first(self, count: int | None) -> Workload:
        return Workload(self.name, self.texts[:count], self.labels[:count])


def workloads() -> dict[str, Workload]:
    """`reviews`: the test part. `mixed`: reviews, questions and XQuAD contexts as `MIXTURE` says, shuffled."""
    with (DATA / "reviews" / "test.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    reviews = [(row["text"], row["label"].upper()) for row in rows]
    questions = [(text, None) for text in question_texts("test")]
    contexts = [(text, None) for text in paragraph_texts()]
    mixed: list[tuple[str, str | None]] = []
    for name, texts in (("reviews", reviews), ("questions", questions), ("contexts", contexts)):
        if len(texts) < MIXTURE[name]:
            raise SystemExit(f"{name}: {len(texts)} texts, and {MIXTURE[name]} are needed")
        mixed += texts[: MIXTURE[name]]
    random.Random(SEED).shuffle(mixed)
    return {name: _workload(name, texts) for name, texts in (("reviews", reviews), ("mixed", mixed))}


def question_texts(part: str) -> list[str]:
    with (DATA / "questions" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def paragraph_texts() -> list[str]:
    """XQuAD's contexts, which are in no parts."""
    squad = json.loads((DATA / "answers" / "xquad.en.json").read_text(encoding="utf-8"))
    return [part["context"] for article in squad["data"] for part in article["paragraphs"]]


def _workload(name: str, texts: Sequence[tuple[str, str | None]]) -> Workload:
    return Workload(name, tuple(text for text, _ in texts), tuple(label for _, label in texts))


def gigaflops(lengths: Sequence[int], config: Mapping[str, Any], *, first_tokens: bool = False) -> float:
    """Multiplications and additions, in 10^9, of the matrix products that a BERT encoder needs for texts of these
    lengths: the four projections and two feed-forward products of each token, scores and mixing of attention. No
    padding, embeddings, head, softmax or norms. With `first_tokens` the last layer answers for the first token of each
    text alone, as a head that reads no other needs: of the other tokens only keys and values."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens, texts = sum(lengths), len(lengths)
    products = 2 * (4 * hidden * hidden + 2 * hidden * inner) * tokens
    attention = 4 * hidden * sum(length * length for length in lengths)
    last = products + attention
    if first_tokens:
        last = 4 * hidden * hidden * tokens + 2 * (2 * hidden * hidden + 2 * hidden * inner) * texts
        last += 4 * hidden * tokens
    return float(((layers - 1) * (products + attention) + last) / 1e9)
