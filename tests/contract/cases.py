"""The cases of the contract suite. A new task joins by one line of `CASES`; every check then runs on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warmstart as ws
from support.damage import copy_of, edit_json
from support.models import tiny_checkpoint
from warmstart.rows import Row
from warmstart.verbs.train import Run

Fields = dict[str, Any]

_TEXTS = (
    "I love this film, it is wonderful and warm.",
    "A dull, tired plot.",
    "The cast is great!",
    "bad",
    "Good words that are said, happy and sad: 0123456789?",
    "the worst two hours of my life",
    "LangChain and transformers are fun to learn " * 2,  # more tokens than a short limit, fewer than the long one
    "story never begins",
)


def single() -> list[Fields]:
    """Eight texts of unequal length with one of two labels each."""
    return [{"text": text, "label": ("NEGATIVE", "POSITIVE")[i % 2]} for i, text in enumerate(_TEXTS)]


def multi() -> list[Fields]:
    """Texts with none, some or all of three labels."""
    sets = (["a"], ["b", "c"], [], ["a", "b", "c"], ["c"], ["b"], ["a", "c"], [])
    return [{"text": text, "label": labels} for text, labels in zip(_TEXTS, sets, strict=True)]


def numbers() -> list[Fields]:
    return [{"text": text, "label": i / 4 - 0.5} for i, text in enumerate(_TEXTS)]


def pairs() -> list[Fields]:
    """The second text is short, long or absent."""
    seconds = (*_TEXTS[1:], None)
    return [row | ({"text_pair": second} if second else {}) for row, second in zip(single(), seconds, strict=True)]


def short_first_pairs() -> list[Fields]:
    return [row | {"text": "is it fun", "text_pair": row["text"]} for row in single()]


def texts() -> list[Fields]:
    return [{"text": text} for text in _TEXTS]


@dataclass(frozen=True)
class Case:
    """A task on a tiny checkpoint of a family. `config` and `files` change the checkpoint before it is loaded."""

    name: str
    task: str
    family: str
    rows: Callable[[], list[Fields]]
    head: str = "classification"
    labels: tuple[str, ...] = ("NEGATIVE", "POSITIVE")
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] = field(default_factory=dict)  # name -> JSON content

    def checkpoint(self, tiny: Path, target: Path) -> Path:
        """Its checkpoint folder, made below `target`; `tiny` keeps the unchanged ones."""
        folder = copy_of(tiny_checkpoint(tiny, self.family, self.head, self.labels), target)
        edit_json(folder / "config.json", self.config)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder


@dataclass(frozen=True)
class Loaded:
    """A case with its checkpoint's folder, its pipeline and its labelled rows."""

    case: Case
    folder: Path
    pipe: ws.Pipeline
    rows: list[Row]


@dataclass(frozen=True)
class Trained:
    """A case before and after some steps on its own rows."""

    before: Loaded
    run: Run


TEXT, EMBED = "text-classification", "sentence-embedding"
_WINDOWS = {"long_text": "windows", "stride": 4, "max_length": 16}
_CUT = {"max_length": 16}
_STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # or three labels take long to learn
_THREE = {"labels": ("a", "b", "c"), "config": {"problem_type": "multi_label_classification"} | _STEADY}
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
_CLS = {
    "modules.json": _MODULES,
    "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True},
}

CASES = [
    *(Case(f"text-{family}", TEXT, family, single) for family in ("bert", "distilbert", "roberta", "modernbert")),
    Case("text-gpt2-no-pad-token", TEXT, "gpt2", single),
    Case("text-truncated", TEXT, "bert", single, options=_CUT),
    Case("text-windows", TEXT, "bert", single, options=_WINDOWS),
    Case("text-windows-gpt2", TEXT, "gpt2", single, options=_WINDOWS),
    Case("text-multi-label", TEXT, "bert", multi, **_THREE),  # type: ignore[arg-type]
    Case("text-multi-label-windows", TEXT, "roberta", multi, options=_WINDOWS, **_THREE),  # type: ignore[arg-type]
    Case("text-regression", TEXT, "roberta", numbers, labels=("score",)),
    Case("text-pairs", TEXT, "bert", pairs),
    Case("text-pairs-truncated", TEXT, "roberta", pairs, options=_CUT),
    Case("text-pairs-windows", TEXT, "bert", short_first_pairs, options=_WINDOWS),
    Case("embedding-mean", EMBED, "bert", texts, head="base"),
    Case("embedding-cls-normalized", EMBED, "distilbert", texts, head="base", files=_CLS),
    Case("embedding-windows", EMBED, "roberta", texts, head="base", options=_WINDOWS),
]
