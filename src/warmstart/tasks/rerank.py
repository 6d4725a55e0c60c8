"""Rerank: a cross-encoder reads a query with each of its passages, and the best passages come first."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from warmstart import metrics
from warmstart.errors import CheckpointError, DataError, UsageError
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure
from warmstart.rows import Field, Row, number
from warmstart.tasks.contract import Scores, checked_options, for_score, judged, text_of
from warmstart.tokenization import Tokenizer

Activation = Literal["sigmoid", "identity"]

# Where sentence-transformers writes the function between logit and score, and the names it has for the two we know.
_ACTIVATIONS: Mapping[str, Activation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
}


@dataclass(frozen=True)
class Reranked:
    """A query's passages, the best first.

    `results`: of each passage its `index` in the row, from 0, and its `score`; of equal scores the first comes first.
    """

    results: tuple[Mapping[str, Any], ...]
    tokens: int
    truncated: bool
    flags: tuple[str, ...] = ()
    logits: Any = for_score()  # (passages,), in the order of the row


@dataclass(frozen=True)
class Rerank:
    """`activation` turns a logit into a score. `labels` names the model's one output.

    A query and passage over the limit are cut, or the passage is covered by windows, of which the best counts (MaxP: Z.
    Dai and J. Callan, "Deeper text understanding for IR with contextual neural language modeling", 2019). To train, a
    label over `max_score` is the probability that the passage answers the query.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()
    activation: Activation = "sigmoid"
    long_text: Literal["truncate", "windows"] = "truncate"
    stride: int = 64
    max_score: int = 1

    name: ClassVar[str] = "rerank"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    trainable: ClassVar[bool] = True
    couples_rows: ClassVar[bool] = False
    prediction: ClassVar[type[Reranked]] = Reranked
    fields: ClassVar[tuple[Field, ...]] = (
        Field("query", ("question", "anchor", "text", "sentence1"), doc="what is asked", text=True),
        Field(
            "passages",
            (
                "documents", "texts", "candidates", "passage", "document", "positive", "answer", "context",
                "text_pair", "sentence2",
            ),
            doc="a list of texts, or one text",
            text=True,
            many=True,
        ),
        Field(
            "labels",
            ("label", "scores", "score", "relevance"),
            required=False,
            target=True,
            doc="how well each passage answers: 0 or 1, or a number from 0 up; a list of them, or one",
        ),
    )  # fmt: skip
    option_names: ClassVar[tuple[str, ...]] = ("long_text", "stride", "activation", "max_score")

    @property
    def pads(self) -> Mapping[str, Pad]:
        tokens = {"input_ids": Pad(self.tokenizer.pad_id), "attention_mask": Pad(0), "token_type_ids": Pad(0)}
        return {**tokens, "labels": Pad(per_token=False)}

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> Rerank:
        known = {
            "long_text": ("truncate", "windows"),
            "stride": (int,),
            "activation": ("sigmoid", "identity"),
            "max_score": (int,),
        }
        chosen = checked_options(cls, options, known)
        named: Mapping[Any, str] = config.get("id2label") or {}
        if "activation" not in chosen:
            chosen["activation"] = _activation(config, folder)
        return cls(tokenizer, labels=tuple(named[key] for key in sorted(named, key=int)), **chosen)

    def learn(self, rows: Sequence[Row]) -> Rerank:
        """The task with one output, and with the largest label of these rows as its `max_score`.

        Raises DataError "passages-empty", "labels-count", "target-not-number" or "relevance-negative".
        """
        highest = max((label for row in rows for label in _labels(row)), default=0.0)
        labels = self.labels if len(self.labels) == 1 else ("score",)
        return dataclasses.replace(self, labels=labels, max_score=max(self.max_score, math.ceil(highest)))

    def with_labels(self, labels: tuple[str, ...]) -> Rerank:
        """The task with this name for its one output. Raises UsageError "rerank-one-label"."""
        if len(labels) != 1:
            raise UsageError(
                "rerank-one-label",
                "a reranker has one output",
                value=labels,
                fix='give one name, e.g. labels=["score"]',
            )
        return dataclasses.replace(self, labels=labels)

    def head(self) -> dict[str, Any]:
        names = dict(enumerate(self.labels))
        return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        if len(self.labels) > 1:
            raise _several_outputs(len(self.labels))
        passages = [_passages(row) for row in rows]
        places = [(i, k) for i, found in enumerate(passages) for k in range(len(found))]
        pairs = [(text_of(rows[i], "query") or "", passages[i][k]) for i, k in places]
        labels = [_labels(row) for row in rows] if train else []
        stride = self.stride if self.long_text == "windows" else None
        encoded = self.tokenizer.encode_as_taken(pairs, stride=stride, wheres=[rows[i].where for i, _ in places])
        part = 0
        for (i, k), code in zip(places, encoded, strict=True):
            part = part if k else 0
            targets = {"labels": np.array(labels[i][k], dtype=np.float32)} if train else {}
            meta = {"passage": k, "truncated": code.truncated, "flags": code.flags}
            for piece in code.pieces:
                inputs = self.tokenizer.inputs(piece)
                yield Feature(i, part, inputs, targets, meta, length=len(inputs["input_ids"]))
                part += 1

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature:
        return feature

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"logits": model(**batch.inputs).logits}  # (B, 1)

    infer = forward

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]:
        """Binary cross entropy, one entry a passage; the passages of a row weigh 1 together."""
        import torch
        import torch.nn.functional as F

        groups: dict[tuple[int, int], list[int]] = {}
        for i, feature in enumerate(batch.features):
            groups.setdefault((feature.row, feature.meta["passage"]), []).append(i)
        members = list(groups.values())
        logits = outputs["logits"].squeeze(-1)
        if len(members) < len(logits):
            logits = torch.stack([logits[windows].amax() for windows in members])
        targets = batch.targets["labels"][[windows[0] for windows in members]] / self.max_score
        losses = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
        rows = [row for row, _ in groups]
        return losses, losses.new_tensor([1 / rows.count(row) for row in rows])

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> Reranked:
        if outputs[0]["logits"].size != 1:
            raise _several_outputs(outputs[0]["logits"].size)
        logits = np.full(features[-1].meta["passage"] + 1, -np.inf)  # (passages,)
        for feature, output in zip(features, outputs, strict=True):
            passage = feature.meta["passage"]
            logits[passage] = max(logits[passage], float(output["logits"][0]))
        scores = np.exp(-np.logaddexp(0, -logits)) if self.activation == "sigmoid" else logits
        order = np.argsort(-logits, kind="stable").tolist()
        return Reranked(
            results=tuple({"index": k, "score": float(scores[k])} for k in order),
            tokens=sum(feature.length for feature in features),
            truncated=any(feature.meta["truncated"] for feature in features),
            flags=tuple(dict.fromkeys(flag for feature in features for flag in feature.meta["flags"])),
            logits=logits,
        )

    def score(self, predictions: Sequence[Reranked], rows: Sequence[Row]) -> Scores:
        """MRR and nDCG over queries with several passages, in one row or more; AUROC of labels 0 and 1, else Spearman.

        nDCG is the primary metric where such queries hold half of the passages. A passage is relevant if its label is
        above 0. A row's `loss` is the mean over its passages.
        """
        labels = [np.array(_labels(row)) for row in rows]
        highest = max(self.max_score, math.ceil(max((row.max() for row in labels), default=0)))
        logits = [np.asarray(prediction.logits) for prediction in predictions]
        losses = [_cross_entropy(z, y / highest).mean() for z, y in zip(logits, labels, strict=True)]
        queries: dict[str, list[int]] = {}
        for i, row in enumerate(rows):
            queries.setdefault(row["query"], []).append(i)
        relevance = [np.concatenate([labels[i] for i in members]) for members in queries.values()]
        ranked = [np.concatenate([logits[i] for i in members]) for members in queries.values()]
        several = [k for k, found in enumerate(relevance) if len(found) > 1]
        truth = np.concatenate(labels)
        number = np.zeros(len(rows), np.int64)  # of each row's query
        for k, members in enumerate(queries.values()):
            number[members] = k
        columns = {"loss": np.array(losses), "query_number": number, "true": _side_by_side(labels)}
        columns["scores"] = _side_by_side(logits)
        measures: dict[str, Measure] = {}
        if several:
            firsts = [members[0] for members in queries.values()]
            for name, judge in (("ndcg", metrics.gains), ("mrr", metrics.reciprocal_ranks)):
                columns[name] = np.full(len(rows), np.nan)  # a query's value stands in its first row
                columns[name][[firsts[k] for k in several]] = judge(
                    [relevance[k] for k in several], [ranked[k] for k in several]
                )
                measures[name] = Measure("mean", (name,), unit="query_number")
        binary = bool(np.isin(truth, (0, 1)).all())
        measures["auroc" if binary else "spearman"] = Measure(
            "list-auroc" if binary else "list-spearman", ("true", "scores"), unit="query_number"
        )
        found = judged(columns, measures)
        # A few pairs that happen to share a query say less than the labels of all.
        ranked_rows = 2 * sum(len(relevance[k]) for k in several) >= len(truth)
        order = ("ndcg", "auroc", "spearman") if ranked_rows else ("auroc", "spearman", "ndcg")
        return dataclasses.replace(found, primary=next((name for name in order if name in found.metrics), None))


def _side_by_side(lists: Sequence[Array]) -> Array:
    """Lists of different lengths as one array (rows, longest), NaN after their ends."""
    table = np.full((len(lists), max(map(len, lists), default=0)), np.nan)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table


def _passages(row: Row) -> list[str]:
    """A row's passages. Raises DataError "field-missing", "field-not-text" or "passages-empty" with its place."""
    value = row.get("passages")
    found: list[Any] = list(value) if isinstance(value, list | tuple | np.ndarray) else [text_of(row, "passages")]
    where = dataclasses.replace(row.where, field="passages")
    for passage in found:
        if not isinstance(passage, str):
            raise DataError(
                "field-not-text",
                f"a passage must be a text, and is of type {type(passage).__name__}",
                where=where,
                value=passage,
                fix="give `passages` a list of strings",
            )
    if not found:
        raise DataError(
            "passages-empty", "there is no passage to rank", where=where, fix="give every row one passage or more"
        )
    return found


def _labels(row: Row) -> list[float]:
    """A row's labels, one a passage."""
    where = dataclasses.replace(row.where, field="labels")
    value, passages = row.get("labels"), _passages(row)
    given: list[Any] = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    labels = [number(label, where) for label in given]
    if len(labels) != len(passages):
        raise DataError(
            "labels-count",
            f"the row has {len(passages)} passages and {len(labels)} labels",
            where=where,
            value=value,
            fix="give a list with one label for each passage",
        )
    if min(labels) < 0:
        raise DataError(
            "relevance-negative",
            "a label is 0 for a passage that does not answer, and larger for one that does",
            where=where,
            value=min(labels),
            fix="shift the labels so that the least is 0",
        )
    return labels


def _activation(config: Mapping[str, Any], folder: Path) -> Activation:
    """What the checkpoint's config says about the way from logit to score; sentence-transformers' default otherwise."""
    own = config.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, Mapping) else None
    name = name or config.get("sbert_ce_default_activation_function")
    if name is None:
        return "sigmoid"
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise CheckpointError(
            "rerank-activation-unknown",
            "the checkpoint turns logits into scores by a function this version does not know",
            where=str(folder / "config.json"),
            value=name,
            fix='choose one: options={"activation": "sigmoid"} or {"activation": "identity"}',
        )
    return _ACTIVATIONS[name]


def _several_outputs(count: int) -> CheckpointError:
    return CheckpointError(
        "rerank-outputs",
        f"a reranker has one output, and this checkpoint has {count}",
        value=count,
        fix='use a cross-encoder with one output, or train one: ws.train(…, task="rerank")',
    )


def _cross_entropy(logits: Array, targets: Array) -> Array:
    """Binary cross entropy of logits (N,) with targets (N,) from 0 to 1."""
    return np.asarray(np.logaddexp(0, logits) - targets * logits)
