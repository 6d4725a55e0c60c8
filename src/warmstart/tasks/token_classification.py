"""Token classification: named entities, or a tag for each word; for texts of any length and for words as given."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart import metrics
from warmstart.errors import UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure
from warmstart.rows import Field, Labels, Row
from warmstart.tasks.class_loss import IGNORED, ClassLoss, count_labels
from warmstart.tasks.contract import Scores, checked_options, for_score, judged
from warmstart.tasks.entity_spans import (
    Aggregation,
    Judged,
    find_entities,
    join_windows,
    softmax,
    unit_targets,
    written,
)
from warmstart.tasks.pieces import Window, lay_out, units_of
from warmstart.tasks.tagged_rows import Words, learn_types, on_words, read_gold, read_words, word_runs
from warmstart.tasks.tagging import Tagging, runs, scheme_labels
from warmstart.tokenization import Encoded, Tokenizer

log = logging.getLogger("warmstart")


@dataclass(frozen=True)
class TaggedText:
    """What was found in a text.

    `entities`: each a mapping of `entity_group` (its type), `score` (mean probability of its words' tags), `word` (the
    text from `start` to `end`), `start` and `end` (characters of the text; end exclusive), in their order.
    `tags`: where the row gave words, one for each of them; otherwise empty.
    """

    entities: tuple[Mapping[str, Any], ...]
    tags: tuple[str, ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    judged: Judged | None = for_score()


@dataclass(frozen=True)
class TokenClassification:
    """`labels` are tags in the model's order. A text over the limit is covered by windows that share `stride` tokens
    (`long_text="windows"`), each token judged in the window that sees most around it; or it is cut (`"truncate"`).

    `aggregation`: a word's tag is that of its "first" piece, of the "average" of its pieces' probabilities, or of its
    surest piece ("max"); "simple" knows no words and groups pieces. They are named as in transformers' pipeline.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    aggregation: Aggregation = "first"
    long_text: Literal["windows", "truncate"] = "windows"
    stride: int = 64
    class_loss: ClassLoss | None = None  # of training

    name: ClassVar[str] = "token-classification"
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[TaggedText]] = TaggedText
    fields: ClassVar[tuple[Field, ...]] = (
        Field("text", ("sentence", "content", "document", "tweet"), doc="the text", text=True, instead="tokens"),
        Field("tokens", ("words",), required=False, doc="instead of a text, or beside it: its words"),
        Field(
            "tags",
            ("ner_tags", "labels", "label", "spans", "entities", "annotations"),
            required=False,
            target=True,
            doc="a tag for each token, or spans of the text",
        ),
    )
    option_names: ClassVar[tuple[str, ...]] = ("aggregation", "long_text", "stride")

    @property
    def pads(self) -> Mapping[str, Pad]:
        return {
            "input_ids": Pad(self.tokenizer.pad_id),
            "attention_mask": Pad(0),
            "token_type_ids": Pad(0),
            "labels": Pad(IGNORED),
        }

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> TokenClassification:
        known = {
            "aggregation": ("first", "average", "max", "simple"),
            "long_text": ("windows", "truncate"),
            "stride": (int,),
        }
        chosen = {"stride": max(1, min(64, tokenizer.limit // 4))} | checked_options(cls, options, known)
        named: Mapping[Any, str] = config.get("id2label") or {}
        # The labels of a classifier of whole texts are no tags, though its head would fit.
        own = (config.get("architectures") or [""])[0].endswith("ForTokenClassification")
        return cls(tokenizer, labels=tuple(named[key] for key in sorted(named, key=int)) if own else (), **chosen)

    def learn(self, rows: Sequence[Row]) -> TokenClassification:
        """The task with the types of entities of these rows, in the scheme of their tags; itself, if it knows them.

        Raises DataError "no-entities", "tags-mixed", "tags-are-ids", and of rows that cannot be read.
        """
        tags, types = learn_types(rows, self.labels)
        if self.labels and self._tagging.knows(types):
            return self
        return dataclasses.replace(self, labels=scheme_labels(tags, types))

    def with_labels(self, labels: tuple[str, ...]) -> TokenClassification:
        """The task with these tags, in this order, for a fresh head. Raises UsageError, DataError "label-duplicate"."""
        if not labels:
            raise UsageError("labels-empty", "there are no labels", value=labels, fix='e.g. ["O", "B-PER", "I-PER"]')
        return dataclasses.replace(self, labels=Labels(labels).names)

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """With `train`, the first piece of each word is a target ("simple": every piece). A warning says what was
        repaired in the gold tags."""
        given = [read_words(row) for row in rows]
        encoded = self._encoded(given)
        repairs: Counter[str] = Counter()
        for index, (row, words, code) in enumerate(zip(rows, given, encoded, strict=True)):
            windows = lay_out(words.text, code.pieces, self.stride)
            targets = self._targets(row, words, windows, repairs) if train else [None] * len(windows)
            common = {"truncated": code.truncated, "flags": code.flags, "pieces": len(windows)}
            for part, (piece, window, labels) in enumerate(zip(code.pieces, windows, targets, strict=True)):
                inputs = self.tokenizer.inputs(piece)
                meta = common | {"places": window.places.tobytes(), "owned": (window.low, window.high)}
                target = {} if labels is None else {"labels": labels}
                yield Feature(index, part, inputs, target, meta, length=len(inputs["input_ids"]))
        _say(repairs)

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"logits": model(**batch.inputs).logits}  # (B, T, labels)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Each feature's mean cross entropy over its words, weighted by their number: every word weighs the same, or
        what `class_loss` says of its tag."""
        labels = batch.targets["labels"]  # (B, T)
        class_loss = self.class_loss or ClassLoss((1.0,) * len(self.labels))
        losses, weights = (
            each.view(labels.shape).sum(dim=1)
            for each in class_loss.loss(outputs["logits"].flatten(0, 1), labels.flatten())
        )
        # A text without a word has no loss; its weight is not zero, so that a batch of such texts can be divided by it.
        weights = weights.clamp(min=1e-6)
        return losses / weights, weights

    def count_labels(self, features: Iterable[Feature]) -> Array:
        return count_labels(features, len(self.labels))

    def with_class_loss(self, class_loss: ClassLoss) -> TokenClassification:
        return dataclasses.replace(self, class_loss=class_loss)

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> TaggedText:
        given = read_words(row)
        places, logits = join_windows(features, outputs)
        probabilities = softmax(logits)
        found, tags = find_entities(places, probabilities, self._tagging, self.aggregation, given.words)
        first, starts, ends = units_of(places, words=self.aggregation != "simple")
        return TaggedText(
            entities=tuple(
                {
                    "entity_group": entity.name,
                    "score": entity.score,
                    "word": given.text[entity.start : entity.end],
                    "start": entity.start,
                    "end": entity.end,
                }
                for entity in found
            ),
            tags=tags,
            tokens=sum(feature.length for feature in features),
            truncated=features[0].meta["truncated"],
            flags=features[0].meta["flags"],
            judged=Judged(starts, ends, probabilities[first]),
        )

    def score(self, predictions: Sequence[TaggedText], rows: Sequence[Row]) -> Scores:
        """Precision, recall and F1 of entities as seqeval defines them, micro, macro and by type, and accuracy of tags.

        Where rows give words, entities are compared by words, otherwise by characters. The loss is that of the words
        that were seen, NaN for predictions that were read back from JSON.
        """
        compared = [self._compare(prediction, row) for prediction, row in zip(predictions, rows, strict=True)]
        types, counts = metrics.entity_counts(
            [each.true for each in compared], [each.predicted for each in compared], self._tagging.types.names
        )
        reads = ("entity_counts",)
        by_type = {f"f1_{name}": Measure("span-f1", reads, index=i) for i, name in sorted(enumerate(types), key=_name)}
        return judged(
            {
                "loss": np.array([each.loss for each in compared]),
                "correct": np.array([each.true == each.predicted for each in compared]),
                "entity_counts": counts,
                "right_tags": np.array([each.right for each in compared]),
                "judged_tags": np.array([each.tags for each in compared]),
            },
            {
                "f1": Measure("span-f1", reads),
                "precision": Measure("span-precision", reads),
                "recall": Measure("span-recall", reads),
                "macro_f1": Measure("span-macro-f1", reads),
                **by_type,
                "accuracy": Measure("ratio", ("right_tags", "judged_tags")),
            },
            primary="accuracy" if self._tagging.outside is None else "f1",
            labels=tuple(types),
            by_label=reads,
        )

    def repairs(self, rows: Sequence[Row]) -> dict[str, int]:
        """What has to be repaired in these rows' gold tags, counted: "inside-without-begin", "span-overlap" and
        "span-off-word-edge". Training and evaluating repair the same, and say it.

            pipe.task.repairs(rows)      # {"span-overlap": 2}
        """
        counts: Counter[str] = Counter()
        every = [read_words(row) for row in rows]
        for row, given, code in zip(rows, every, self._encoded(every), strict=True):
            self._targets(row, given, lay_out(given.text, code.pieces, self.stride), counts)
        return {name: count for name, count in counts.items() if count}

    @cached_property
    def _tagging(self) -> Tagging:
        if not self.labels:
            raise UsageError(
                "labels-unknown",
                "the task has no labels yet",
                fix="train with ws.train, which learns them from the rows, or give labels to ws.load",
            )
        return Tagging(self.labels)

    def _encoded(self, given: Sequence[Words]) -> list[Encoded]:
        stride = self.stride if self.long_text == "windows" else None
        return self.tokenizer.encode([each.text for each in given], stride=stride)

    def _targets(self, row: Row, given: Words, windows: Sequence[Window], repairs: Counter[str]) -> list[Array]:
        """Each window's targets (T,): the label of each word at its first piece, in the window that answers for it."""
        places = np.concatenate([window.places[window.low : window.high] for window in windows])
        first, starts, ends = units_of(places, words=self.aggregation != "simple")
        gold = read_gold(row, given, self._tagging, repairs)
        if given.words is None:
            gold = on_words(gold, starts, ends, repairs)
        every = np.full(len(places), IGNORED, dtype=np.int64)
        every[first] = unit_targets(gold, starts, ends, self._tagging)
        targets, done = [], 0
        for window in windows:
            labels = np.full(len(window.places), IGNORED, dtype=np.int64)
            labels[window.low : window.high] = every[done : done + window.high - window.low]
            done += window.high - window.low
            targets.append(labels)
        return targets

    def _compare(self, prediction: TaggedText, row: Row) -> _Compared:
        given, judged = read_words(row), prediction.judged
        unsaid: Counter[str] = Counter()  # evaluating says its repairs where it encodes
        gold = read_gold(row, given, self._tagging, unsaid)
        if given.words is None and judged is not None:
            gold = on_words(gold, judged.starts, judged.ends, unsaid)
        loss, right, tags = (np.nan, 0, 0) if judged is None else judged.against(gold, self._tagging)
        if given.words is None:
            spans = {(e["entity_group"], e["start"], e["end"]) for e in prediction.entities}
            return _Compared({(name, start, end) for start, end, name in gold}, spans, loss, right, tags)
        true = word_runs(gold, given.words)
        wanted = written(true, len(given.words), self._tagging)
        predicted = runs([self._tagging.read(tag, row.where) for tag in prediction.tags])
        right = sum(a == b for a, b in zip(wanted, prediction.tags, strict=True))
        return _Compared(set(true), set(predicted), loss, right, len(wanted))


@dataclass(frozen=True)
class _Compared:
    """A prediction beside the truth: entities as (type, start, end), and how many of its tags are right."""

    true: set[tuple[str, int, int]]
    predicted: set[tuple[str, int, int]]
    loss: float
    right: int
    tags: int


def _name(numbered: tuple[int, str]) -> str:
    return numbered[1]


def _say(repairs: Counter[str]) -> None:
    said = ", ".join(f"{count} × {name}" for name, count in sorted(repairs.items()) if count)
    if said:
        log.warning("gold tags were repaired: %s", said)
