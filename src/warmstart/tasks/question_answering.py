"""Extractive question answering: the piece of a context that answers a question, or that there is none."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart import metrics
from warmstart.errors import UsageError, Where
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure
from warmstart.rows import Field, GoldAnswer, Placed, Row, place, read_answers
from warmstart.tasks.answer_spans import Window, best_spans, target_tokens, token_spans, window_loss
from warmstart.tasks.contract import Scores, checked_options, for_score, judged, text_of
from warmstart.tokenization import Encoded, Tokenizer

log = logging.getLogger("warmstart")

STRIDE = 128  # as in the scripts for SQuAD; a quarter of the limit where that is less

# What is said of answers that do not stand where the row says, and of those that nothing can be learned from.
_ODD = {
    "moved": "do not begin at their answer_start; the nearest occurrence of the text is taken",
    "first": "have no answer_start and occur several times; the first is taken",
    "absent": "do not occur in their context: nothing to learn from",
    "outside": "lie in no window as a whole: nothing to learn from",
}


@dataclass(frozen=True)
class Answer:
    """What answers a question. `answer` is `context[start:end]`; "" (0, 0) says that the context has no answer.

    `score`: the probability of this very span among all spans of the context and no answer. `alternatives`: with
    `top_k` above 1, the next best spans, best first, each a dict of answer, score, start and end.
    """

    answer: str
    score: float
    start: int
    end: int
    alternatives: tuple[Mapping[str, Any], ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    windows: tuple[Window, ...] | None = for_score()


@dataclass(frozen=True)
class QuestionAnswering:
    """A context over the limit is covered by windows that share `stride` tokens, each beside the whole question, and
    answers are the best of all windows (`long_text="windows"`), or it is cut (`"truncate"`).

    An answer has at most `max_answer_tokens`. There is none where its probability, beside the best span's alone, is
    above `no_answer_threshold`: never at 1. Logarithm of its odds = the "null score difference" of SQuAD's scripts.
    """

    tokenizer: Tokenizer
    long_text: Literal["truncate", "windows"] = "windows"
    stride: int = STRIDE
    max_answer_tokens: int = 30
    no_answer_threshold: float = 1.0
    top_k: int = 1

    name: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[Answer]] = Answer
    fields: ClassVar[tuple[Field, ...]] = (
        Field("question", ("query",), doc="the question", text=True),
        Field(
            "context",
            ("passage", "paragraph", "document", "text"),
            doc="the text that may answer it",
            text=True,
            together=True,
        ),
        Field(
            "answers",
            ("answer",),
            required=False,
            target=True,
            doc="its answers: texts, or SQuAD's text and answer_start; [] for none",
        ),
    )
    option_names: ClassVar[tuple[str, ...]] = (
        "long_text",
        "stride",
        "max_answer_tokens",
        "no_answer_threshold",
        "top_k",
    )

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {
            "input_ids": Pad(self.tokenizer.pad_id),
            "attention_mask": Pad(0),
            "token_type_ids": Pad(0),
            "start_positions": Pad(per_token=False),
            "end_positions": Pad(per_token=False),
        }

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> QuestionAnswering:
        whole, share = (int,), (float,)
        known = {"long_text": ("truncate", "windows"), "stride": whole, "max_answer_tokens": whole, "top_k": whole}
        chosen = checked_options(cls, options, known | {"no_answer_threshold": share})
        return cls(tokenizer, **{"stride": min(STRIDE, max(1, tokenizer.limit // 4)), **chosen})

    def learn(self, rows: Sequence[Row]) -> QuestionAnswering:
        """Itself: the head of every such checkpoint has the same two rows."""
        none = sum(not answers for answers in map(_gold, rows))
        if none and self.no_answer_threshold == 1:
            log.warning(
                "%s of %s questions have no answer, and no_answer_threshold=1 never says so; 0.5 takes the likelier",
                f"{none:,}",
                f"{len(rows):,}",
            )
        return self

    def with_labels(self, labels: tuple[str, ...]) -> QuestionAnswering:
        raise UsageError(
            "task-has-no-labels",
            "question answering has no labels",
            value=labels,
            fix='leave labels out; ws.train(…, task="question-answering") starts a head where there is none',
        )

    def head(self) -> dict[str, Any]:
        return {"num_labels": 2}  # a start and an end logit

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """With `train`, a row whose answer stands nowhere in its windows gives no feature: it could only teach what is
        false. How many did, and how many answers were found elsewhere than said, is logged; `meta["answer"]` tells it
        of each row ("as-given", "only", "first", "moved", "none")."""
        texts = [(_text(row, "question"), _text(row, "context")) for row in rows]
        golds = [_gold(row) for row in rows] if train else []
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode(texts, stride=stride, wheres=[row.where for row in rows])
        if train:
            yield from self._with_targets(rows, [context for _, context in texts], golds, encoded)
            return
        for index, (code, (question, context)) in enumerate(zip(encoded, texts, strict=True)):
            blank = not question.strip() or not context.strip()
            flags = ("empty-text", *code.flags) if blank and "empty-text" not in code.flags else code.flags
            for part, piece in enumerate(code.pieces):
                inputs = self.tokenizer.inputs(piece)
                meta = {"truncated": code.truncated, "flags": flags, "spans": token_spans(piece, context)}
                yield Feature(index, part, inputs, {}, meta, length=len(inputs["input_ids"]))

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        """Start and end logits, (B, T) each; of padding the lowest there are: no answer begins or ends in it."""
        import torch

        outputs = model(**batch.inputs)
        padding = batch.inputs["attention_mask"] == 0
        return {
            name: logits.masked_fill(padding, torch.finfo(logits.dtype).min)
            for name, logits in (("start", outputs.start_logits), ("end", outputs.end_logits))
        }

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """The mean of both cross entropies over the tokens of each window, no padding; each row weighs 1 in all."""
        import torch.nn.functional as F

        starts, ends = (
            F.cross_entropy(outputs[name], batch.targets[f"{name}_positions"], reduction="none")
            for name in ("start", "end")
        )
        losses = (starts + ends) / 2
        return losses, losses.new_tensor([1 / feature.meta["pieces"] for feature in batch.features])

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> Answer:
        windows = tuple(
            Window(feature.meta["spans"], output["start"][: feature.length], output["end"][: feature.length])
            for feature, output in zip(features, outputs, strict=True)
        )
        found = best_spans(windows, longest=self.max_answer_tokens, count=self.top_k)
        spans = [
            {"answer": _shown(row["context"][start:end]), "score": score, "start": start, "end": end}
            for (start, end), score in zip(found.characters.tolist(), found.scores.tolist(), strict=True)
        ]
        if found.none_or_best > self.no_answer_threshold or not spans:
            spans = [{"answer": "", "score": found.none, "start": 0, "end": 0}, *spans]
        best, *others = spans[: self.top_k]
        return Answer(
            **best,
            alternatives=tuple(others),
            tokens=sum(feature.length for feature in features),
            truncated=features[0].meta["truncated"],
            flags=features[0].meta["flags"],
            windows=windows,
        )

    def score(self, predictions: Sequence[Answer], rows: Sequence[Row]) -> Scores:
        """Exact match and F1 as SQuAD's script has them, of each row against the best of its answers.

        The loss is that of training, averaged over a row's windows; a row whose answer was not found in them is judged
        as if it had none.
        """
        golds = [_gold(row) for row in rows]
        texts = [[answer.text for answer in answers] for answers in golds]
        exact, f1 = metrics.answer_scores([prediction.answer for prediction in predictions], texts)
        losses = [_loss(*each) for each in zip(predictions, rows, golds, strict=True)]
        return judged(
            {"loss": np.array(losses), "correct": exact, "f1": f1},
            {"exact_match": Measure("share", ("correct",)), "f1": Measure("mean", ("f1",))},
            primary="f1",
        )

    def _with_targets(
        self,
        rows: Sequence[Row],
        contexts: Sequence[str],
        golds: Sequence[tuple[GoldAnswer, ...]],
        encoded: Sequence[Encoded],
    ) -> Iterator[Feature]:
        odd: Counter[str] = Counter()
        first: dict[str, Where] = {}
        for index, (row, context, answers, code) in enumerate(zip(rows, contexts, golds, encoded, strict=True)):
            placed = place(answers[0], context) if answers else None
            targets = [_target(token_spans(piece, context), placed) for piece in code.pieces]
            found: str = "none" if not answers else "absent" if placed is None else placed.placing
            if placed is not None and not any(target != (0, 0) for target in targets):
                found = "outside"
            if found in _ODD:
                odd[found] += 1
                first.setdefault(found, row.where)
            if found in ("absent", "outside"):
                continue
            meta = {"truncated": code.truncated, "flags": code.flags, "pieces": len(code.pieces), "answer": found}
            for part, (piece, (start, end)) in enumerate(zip(code.pieces, targets, strict=True)):
                inputs = self.tokenizer.inputs(piece)
                positions = {"start_positions": np.array(start), "end_positions": np.array(end)}
                yield Feature(index, part, inputs, positions, meta, length=len(inputs["input_ids"]))
        for found, count in sorted(odd.items()):
            log.warning("%s of %s answers %s: first at %s", f"{count:,}", f"{len(rows):,}", _ODD[found], first[found])


def _target(spans: Array, placed: Placed | None) -> tuple[int, int]:
    """The answer's first and last token in a window; the first token, [CLS], for both where it is not there."""
    return (placed and target_tokens(spans, placed.start, placed.end)) or (0, 0)


def _loss(prediction: Answer, row: Row, answers: tuple[GoldAnswer, ...]) -> float:
    """The training loss of a row: the mean over its windows, in nats."""
    assert prediction.windows is not None, "a prediction read back from JSON has no logits to judge"
    placed = place(answers[0], row["context"]) if answers else None
    losses = [window_loss(window, *_target(window.spans, placed)) for window in prediction.windows]
    return sum(losses) / len(losses)


def _gold(row: Row) -> tuple[GoldAnswer, ...]:
    """The answers of a row; a flat row's one text has its place in a column `answer_start`."""
    where = dataclasses.replace(row.where, field="answers")
    return read_answers(row.get("answers"), where, start=row.get("answer_start"))


def _text(row: Row, name: str) -> str:
    text = text_of(row, name)
    assert text is not None
    return text


def _shown(text: str) -> str:
    """An answer that any JSON may carry: lone surrogates are replaced, as the model read them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
