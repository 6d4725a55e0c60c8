"""The cases of the contract suite. A new task joins by one line of `CASES`; every check then runs on it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warmstart as ws
from support.damage import copy_of, edit_json
from support.models import ENCODER_DECODERS, tiny_checkpoint
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


def scored_pairs() -> list[Fields]:
    """Pairs with a score from 0 to 1."""
    return [{"text": text, "text_pair": _TEXTS[i - 3], "score": i / 8} for i, text in enumerate(_TEXTS)]


def answers() -> list[Fields]:
    """Texts that belong together, some with one that does not."""
    rows: list[Fields] = [{"text": text, "text_pair": f"{i} {text[::-1]}"} for i, text in enumerate(_TEXTS)]
    return [row | ({"negative": f"no {i} words"} if i % 3 == 0 else {}) for i, row in enumerate(rows)]


def triplets() -> list[Fields]:
    return [row | {"negative": f"{i} sad stories"} for i, row in enumerate(answers())]


def candidates() -> list[Fields]:
    """Queries with one to three passages, some of which answer."""
    return [
        {"query": text[:18], "passages": [_TEXTS[(i + k) % 8] for k in range(1 + i % 3)]}
        | {"labels": [(i + k) % 2 for k in range(1 + i % 3)]}
        for i, text in enumerate(_TEXTS)
    ]


def relevant_pairs() -> list[Fields]:
    """One passage a row."""
    return [{"query": text[:18], "passages": _TEXTS[i - 2], "labels": i % 2} for i, text in enumerate(_TEXTS)]


def spans() -> list[Fields]:
    """Texts whose second word is a thing, and whose third and fourth are a place, if there are so many."""
    rows: list[Fields] = []
    for text in _TEXTS:
        words = [match.span() for match in re.finditer(r"\w+", text)]
        things = [[*words[1], "THING"]] if len(words) > 1 else []
        rows.append({"text": text, "tags": [*things, *([[words[2][0], words[3][1], "PLACE"]] if words[3:] else [])]})
    return rows


def tagged() -> list[Fields]:
    """Words with a tag each; no row has a text."""
    tags = ("B-PLACE", "I-PLACE", "O", "B-THING", "B-THING", "O", "O", "B-PLACE")
    split = [text.split() for text in _TEXTS]
    return [{"tokens": words, "tags": [tags[i % 8] for i in range(len(words))]} for words in split]


def questions() -> list[Fields]:
    """A question on each text, answered by its first words or by nothing, in the shapes data sets write answers in."""
    rows: list[Fields] = [
        {"question": f"is {i}?", "context": text, "answers": [" ".join(text.split()[i % 2 : 2])]}
        for i, text in enumerate(_TEXTS)
    ]
    rows[0]["answers"] = {"text": rows[0]["answers"], "answer_start": [0]}
    rows[2]["answers"] = [{"text": "cast", "answer_start": 4}]
    rows[6]["answers"] = []
    return rows


def masked(mask: str, words: int = 8) -> Callable[[], list[Fields]]:
    """Eight texts that each say one word over and over, with masks in some of its places."""
    known = ("film", "cast", "plot", "story", "fun", "sad", "great", "warm")
    said = [(i, known[i % words]) for i in range(8)]
    return lambda: [
        {"text": f"{word} {mask} " + f"{word} " * (3 + i) + (f"{mask} {word}" if i % 2 else word)} for i, word in said
    ]


def prompts() -> list[Fields]:
    """Texts to go on with; nothing else is said about them."""
    return [{"prompt": text} for text in _TEXTS]


def completions() -> list[Fields]:
    return [{"prompt": text, "completion": " ".join(text.split()[::-1])} for text in _TEXTS]


def conversations() -> list[Fields]:
    """One to three questions, each with an answer; the last is another in every row."""
    said = [(f"{i} {text}", text[::-1]) for i, text in enumerate(text[:10] for text in _TEXTS)]
    return [
        {
            "messages": [
                {"role": role, "content": content}
                for question, answer in said[: i % 3] + said[i : i + 1]
                for role, content in (("user", question), ("assistant", answer))
            ]
        }
        for i in range(len(said))
    ]


def rewritten() -> list[Fields]:
    """Texts that become their last words."""
    return [{"source": text, "target": " ".join(text.split()[-1 - i % 3 :])} for i, text in enumerate(_TEXTS)]


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
    takes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # what an option takes that others refuse

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


TEXT, EMBED, RERANK = "text-classification", "sentence-embedding", "rerank"
ANSWER, TOKENS = "question-answering", "token-classification"
ZERO, MASK, REWRITE = "zero-shot-classification", "fill-mask", "text-to-text"
GENERATE = "text-generation"
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
_BIO: Mapping[str, Any] = {"head": "tokens", "labels": ("O", "B-THING", "I-THING", "B-PLACE", "I-PLACE")}
_BILOU = _BIO | {"labels": ("O", *(f"{prefix}-{name}" for name in ("PLACE", "THING") for prefix in "BILU"))}
_COSINE = {"objective": "cosine"}
_ONE: Mapping[str, Any] = {"labels": ("score",)}
_OR_NONE = {"no_answer_threshold": 0.5}
_ANSWER_CUT: Mapping[str, Any] = {"max_length": 20, "long_text": "truncate"} | _OR_NONE
_TAKES: Mapping[str, Any] = {"multi_label": (True,), "out_of_scope": ("sideways",)}
_ENTAIL: Mapping[str, Any] = {"labels": ("contradiction", "neutral", "entailment"), "takes": _TAKES}
_ASK = {"labels": "NEGATIVE,POSITIVE"}
_SHORT = {"hypothesis_template": "{}", "max_length": 24}
_MASK: Mapping[str, Any] = {"head": "masks", "config": _STEADY}
_GENERATE: Mapping[str, Any] = {"head": "generation", "takes": {"stop": ("sideways", [])}}
_NEW = {"max_new_tokens": 6}
_DRAWN = _NEW | {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 3}
_WHOLE = {"long_text": "truncate", "mask_share": 0.3}
_SAID: Mapping[str, Any] = {"prefix": ("sideways",), "stop": ("sideways", [])}
_WRITE: Mapping[str, Any] = {"head": REWRITE, "config": {"dropout": 0.0, "dropout_rate": 0.0}, "takes": _SAID}

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
    Case("embedding-scored", EMBED, "bert", scored_pairs, head="base", options=_COSINE),
    Case("embedding-cls-normalized", EMBED, "distilbert", answers, head="base", files=_CLS),
    Case("embedding-triplets", EMBED, "modernbert", triplets, head="base", options={"objective": "triplet"}),
    Case("embedding-truncated", EMBED, "bert", answers, head="base", options=_CUT),
    Case("embedding-windows", EMBED, "roberta", scored_pairs, head="base", options=_WINDOWS | _COSINE),
    Case("rerank-bert", RERANK, "bert", candidates, config=_STEADY, **_ONE),
    Case("rerank-roberta", RERANK, "roberta", candidates, config=_STEADY, **_ONE),
    Case("rerank-modernbert", RERANK, "modernbert", candidates, **_ONE),
    Case("rerank-pairs", RERANK, "distilbert", relevant_pairs, **_ONE),
    Case("rerank-truncated", RERANK, "bert", candidates, options=_CUT, config=_STEADY, **_ONE),
    Case("rerank-windows", RERANK, "bert", candidates, options=_WINDOWS, config=_STEADY, **_ONE),
    *(
        Case(f"answer-{family}", ANSWER, family, questions, head=ANSWER, options=_OR_NONE)
        for family in ("bert", "distilbert", "roberta", "modernbert", "gpt2")
    ),
    Case("answer-windows", ANSWER, "bert", questions, head=ANSWER, options=_WINDOWS | _OR_NONE),
    Case(
        "answer-windows-roberta", ANSWER, "roberta", questions, head=ANSWER, options=_WINDOWS | _OR_NONE | {"top_k": 3}
    ),
    *(Case(f"tokens-{family}", TOKENS, family, spans, **_BIO) for family in ("bert", "roberta", "gpt2")),
    *(Case(f"tokens-tagged-{family}", TOKENS, family, tagged, **_BILOU) for family in ("distilbert", "modernbert")),
    Case("tokens-windows", TOKENS, "bert", tagged, options=_WINDOWS, **_BIO),
    Case("tokens-windows-simple", TOKENS, "roberta", spans, options=_WINDOWS | {"aggregation": "simple"}, **_BIO),
    Case("tokens-truncated", TOKENS, "bert", spans, options=_CUT | {"long_text": "truncate"}, **_BIO),
    Case("answer-truncated", ANSWER, "roberta", questions, head=ANSWER, options=_ANSWER_CUT),
    *(
        Case(f"zero-shot-{family}", ZERO, family, single, options=_ASK, **_ENTAIL)
        for family in ("bert", "distilbert", "roberta", "modernbert", "gpt2")
    ),
    Case("zero-shot-each", ZERO, "bert", single, options=_ASK | {"multi_label": True}, **_ENTAIL),
    Case("zero-shot-truncated", ZERO, "roberta", single, options=_ASK | _SHORT, **_ENTAIL),
    Case("zero-shot-windows", ZERO, "bert", single, options=_ASK | _WINDOWS | _SHORT, **_ENTAIL),
    Case("zero-shot-embedding", ZERO, "bert", single, head="base", options=_ASK, files=_CLS, takes=_TAKES),
    Case("zero-shot-embedding-truncated", ZERO, "roberta", single, "base", options=_ASK | _CUT, takes=_TAKES),
    Case("zero-shot-embedding-windows", ZERO, "distilbert", single, "base", options=_ASK | _WINDOWS, takes=_TAKES),
    *(
        Case(f"mask-{family}", MASK, family, masked("[MASK]"), options=_WHOLE, **_MASK)
        for family in ("bert", "distilbert")
    ),
    Case("mask-roberta", MASK, "roberta", masked("<mask>"), options=_WHOLE, **_MASK),
    Case("mask-modernbert", MASK, "modernbert", masked("<mask>", words=2), options=_WHOLE, **_MASK),
    Case("mask-truncated", MASK, "bert", masked("[MASK]"), options=_WHOLE | {"max_length": 10}, **_MASK),
    Case("mask-windows", MASK, "roberta", masked("<mask>"), options=_WHOLE | _WINDOWS | {"max_length": 10}, **_MASK),
    Case("generate-gpt2", GENERATE, "gpt2", prompts, options=_NEW, **_GENERATE),
    Case("generate-llama-messages", GENERATE, "llama", conversations, options=_NEW, **_GENERATE),
    Case("generate-qwen2-drawn", GENERATE, "qwen2", completions, options=_DRAWN, **_GENERATE),
    Case("generate-gemma-beams", GENERATE, "gemma", completions, options=_NEW | {"beams": 3}, **_GENERATE),
    Case("generate-truncated", GENERATE, "llama", completions, options=_CUT | {"max_new_tokens": 4}, **_GENERATE),
    *(Case(f"rewrite-{family}", REWRITE, family, rewritten, options=_NEW, **_WRITE) for family in ENCODER_DECODERS),
    Case("rewrite-beams", REWRITE, "bart", rewritten, options=_NEW | {"beams": 3}, **_WRITE),
    Case("rewrite-sampled", REWRITE, "t5", rewritten, options=_NEW | {"temperature": 2.0, "top_k": 9}, **_WRITE),
    Case("rewrite-truncated", REWRITE, "marian", rewritten, options=_NEW | _CUT | {"prefix": "the: "}, **_WRITE),
]
