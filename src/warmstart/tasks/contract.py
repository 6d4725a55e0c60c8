"""What a task is: the same few names in every file of this folder, and what a prediction can do.

A task is a frozen dataclass that holds its tokenizer, labels and options. It turns rows into features (`encode`), says
what a model computes from a batch (`forward`, `infer`, `loss`), turns that into predictions (`decode`) and judges them
(`score`). It imports neither torch nor transformers: torch stands inside `forward`, `infer` and `loss` only, so that
exported runtimes and servers share everything else. `tests/contract/` checks all of this on every task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from warmstart.errors import DataError, UsageError, did_you_mean
from warmstart.features import Array, Batch, Feature, Pad
from warmstart.metrics import Measure, Metric
from warmstart.rows import Field, Row
from warmstart.tasks.class_loss import ClassLoss
from warmstart.tasks.option_rules import Rule
from warmstart.tokenization import Tokenizer

if TYPE_CHECKING:
    from warmstart.tasks.decoding import Answer


@dataclass(frozen=True)
class Scores:
    """Judged predictions: `per_example` arrays whose first axis is the row (always `loss`), and metrics with intervals.

    `primary` names the metric by which a run chooses its weights, larger is better; it may be undefined for some
    predictions and then is not among the metrics. Without a name, weights are chosen by the loss. `measures` say how
    a metric is computed from `per_example`: two models are compared by those. `labels` are the model's, in the order in
    which the arrays named in `by_label` number them (rows,) or list them (rows, labels, …). See `judged`.
    """

    per_example: Mapping[str, Array]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    primary: str | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    by_label: tuple[str, ...] = ()


def judged(
    per_example: Mapping[str, Array],
    measures: Mapping[str, Measure],
    *,
    primary: str | None = None,
    labels: tuple[str, ...] = (),
    by_label: tuple[str, ...] = (),
) -> Scores:
    """Scores whose metrics are what the measures make of the arrays; one that these rows do not define is left out."""
    found = {name: measure.of(per_example) for name, measure in measures.items()}
    metrics = {name: metric for name, metric in found.items() if metric is not None}
    return Scores(per_example, metrics, primary, measures, labels, by_label)


@runtime_checkable
class Prediction(Protocol):
    """A frozen dataclass of plain values. Every task's prediction has these beside its own fields."""

    @property
    def tokens(self) -> int:
        """Tokens the model saw, special tokens included, over all windows."""
        ...

    @property
    def truncated(self) -> bool:
        """Whether part of the text was not seen."""
        ...

    @property
    def flags(self) -> tuple[str, ...]:
        """What was odd about the text: "empty-text", "unknown-tokens-only", "surrogates-replaced", …"""
        ...


class Task(Protocol):
    """The task contract. `docs/architecture.md` says how a new task is added."""

    name: ClassVar[str]
    auto_class: ClassVar[str]  # the transformers Auto class that loads its model
    fields: ClassVar[tuple[Field, ...]]  # the row fields it reads
    prediction: ClassVar[type[Any]]  # what decode returns
    trainable: ClassVar[bool]
    option_names: ClassVar[tuple[str, ...]]  # its fields that are a person's choice, kept with a saved run

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def couples_rows(self) -> bool:
        """Does one row's loss depend on the other rows of its batch; then batches are never split or accumulated."""
        ...

    @property
    def pads(self) -> Mapping[str, Pad]:
        """How each named array of a feature is padded."""
        ...

    @classmethod
    def from_checkpoint(
        cls, tokenizer: Tokenizer, config: Mapping[str, Any], folder: Path, options: Mapping[str, Any]
    ) -> Task:
        """The task as a checkpoint defines it; `options` are the person's choices."""
        ...

    def learn(self, rows: Sequence[Row]) -> Task:
        """The task as these training rows define it: their labels, their kind of target."""
        ...

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The task with these labels instead, for a fresh head."""
        ...

    def head(self) -> dict[str, Any] | None:
        """What a fresh head needs in the model's config; None for a task whose model has no head."""
        ...

    def encode(self, rows: Sequence[Row], *, train: bool = False) -> Iterator[Feature]:
        """Each row as one feature or more, rows in their order, parts from 0. With `train` they have targets, and a row
        that could teach nothing true may give none, which the task counts and logs."""
        ...

    def vary(self, feature: Feature, rng: np.random.Generator) -> Feature: ...

    def forward(self, model: Any, batch: Batch) -> dict[str, Any]: ...

    def infer(self, model: Any, batch: Batch) -> dict[str, Any]: ...

    def loss(self, outputs: Mapping[str, Any], batch: Batch) -> tuple[Any, Any]: ...

    def decode(self, row: Row, features: Sequence[Feature], outputs: Sequence[Mapping[str, Array]]) -> Prediction: ...

    def score(self, predictions: Sequence[Any], rows: Sequence[Row]) -> Scores: ...


@runtime_checkable
class NeedsExam(Protocol):
    """A task that cannot be judged by predictions for rows as they are: its loss needs the targets under the model."""

    def exam(self, rows: Sequence[Row]) -> Iterator[Feature]:
        """The features of evaluation, with targets; the same at every call. `infer` finds the targets in the batch."""
        ...


@runtime_checkable
class NeedsModel(Protocol):
    """A task that computes something with its model before the first row, such as the vectors of its labels."""

    def prepare(self, run: Callable[[Sequence[Feature]], Sequence[Mapping[str, Array]]]) -> Task:
        """The task that holds it. `run` gives each feature's outputs. It is not computed again if the model changes."""
        ...


@runtime_checkable
class ComparesRows(Protocol):
    """A task that may learn from rows beside each other: where it says `couples_rows`, batches are planned by this."""

    def apart(self, features: Sequence[Feature]) -> frozenset[bytes]:
        """What the row of these features must not share with another of its batch, its texts, say; empty: nothing."""
        ...

    def lacks(self, features: Sequence[Feature]) -> str | None:
        """What a batch of these features lacks to teach anything, in words; None: nothing. Without it, its loss is 0
        whatever the model says."""
        ...


@runtime_checkable
class Generates(Protocol):
    """A task whose `infer` generates: a batch goes on growing while it runs, and can be watched.

    No graph can be traced of it. `decode` reads what `Answer.outputs` holds, from `infer` and from `stream` alike.
    """

    def stream(self, model: Any, batch: Batch) -> Iterator[Sequence[Answer]]:
        """The answers of the batch's features after each token. Closing the iterator frees what generating holds.

        Raises UsageError "stream-with-beams": a search knows its text at its end only."""
        ...

    def rows_at_most(self, longest: int) -> int:
        """How many features may share a batch whose longest has `longest` tokens: the key-value cache is bounded.
        At least 1 for whatever `encode` gives, which refuses a row that does not fit alone."""
        ...

    @property
    def prompt_limit(self) -> int:
        """The most tokens of a prompt, so that there is room for an answer after it."""
        ...


@runtime_checkable
class WritesFiles(Protocol):
    """A task that other programs read from files of its own, beside the model's."""

    def files(self, *, width: int) -> Mapping[str, bytes]:
        """The files by their name in the saved folder, at most one folder deep. `width` is the model's."""
        ...


@runtime_checkable
class WeighsClasses(Protocol):
    """A classification, whose training loss may weigh its labels and smooth its targets."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    def count_labels(self, features: Iterable[Feature]) -> Array:
        """How often each label is a target, in the model's order: (labels,)."""
        ...

    def with_class_loss(self, class_loss: ClassLoss) -> Task:
        """It, learning by this loss. Raises UsageError "loss-unsupported" where targets are not single labels."""
        ...


def for_score() -> Any:
    """A prediction's field that `score` alone reads: arrays that decode has at hand, such as a token's probabilities.

    It is part neither of the prediction's JSON nor of its equality, and None in one that was read back from JSON.
    """
    return field(default=None, repr=False, compare=False, metadata=_FOR_SCORE)


_FOR_SCORE: Mapping[str, bool] = {"for_score": True}


def prediction_fields(kind: type[Any]) -> tuple[str, ...]:
    """The names in a prediction's JSON, in their order."""
    return tuple(item.name for item in dataclasses.fields(kind) if item.metadata != _FOR_SCORE)


def as_dict(prediction: Any) -> dict[str, Any]:
    """A prediction as plain JSON-able values, its fields in their order."""
    return {name: _plain(getattr(prediction, name)) for name in prediction_fields(type(prediction))}


def from_dict(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """The inverse of `as_dict`: a prediction from its JSON values. Lists become tuples."""
    names = prediction_fields(kind)
    return kind(**{name: _frozen(value) for name, value in values.items() if name in names})


def text_of(row: Row, name: str, *, optional: bool = False) -> str | None:
    """The text a row holds in field `name`.

    Raises DataError "field-missing" or "field-not-text" that names the row's place and the field.
    """
    value = row.get(name)
    where = dataclasses.replace(row.where, field=name)
    if value is None:
        if optional:
            return None
        raise DataError(
            "field-missing",
            f"the row has no {name!r}",
            where=where,
            value=sorted(row),
            fix=f"give every row a text in {name!r}, or pin the column that holds it",
        )
    if not isinstance(value, str):
        raise DataError(
            "field-not-text",
            f"{name!r} must be a text, and is of type {type(value).__name__}",
            where=where,
            value=value,
            fix="convert the value to a string before predicting or training",
        )
    return value


def checked_options(
    task: type[Any], options: Mapping[str, Any], known: Mapping[str, tuple[Any, ...] | Rule]
) -> dict[str, Any]:
    """Check a person's task options: `known` maps each name to its allowed values; (int,) stands for every whole
    number from 1, (float,) for every number from 0 to 1, (bool,) for True and False, (str,) for every text.

    Raises UsageError "option-unknown" or "option-value".
    """
    for name, value in options.items():
        if name not in known:
            raise UsageError(
                "option-unknown",
                f"{task.name} has no option {name!r}",
                value=name,
                fix=did_you_mean(name, known),
            )
        rule = known[name]
        fits, wanted = (rule.fits, rule.wanted) if isinstance(rule, Rule) else _option_rule(rule)
        if not fits(value):
            raise UsageError("option-value", f"{name} must be {wanted}", value=value, fix=f"set {name} to {wanted}")
    return dict(options)


def _option_rule(allowed: tuple[Any, ...]) -> tuple[Callable[[Any], bool], str]:
    if allowed == (int,):
        return lambda value: type(value) is int and value > 0, "a positive whole number"
    if allowed == (float,):
        return lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"
    if allowed == (bool,):
        return lambda value: isinstance(value, bool), "true or false"
    if allowed == (str,):
        return lambda value: isinstance(value, str) and bool(value.strip()), "a text"
    return lambda value: isinstance(value, str) and value in allowed, " or ".join(map(repr, allowed))


_PLAIN = frozenset({bool, int, float, str, type(None)})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        if _PLAIN.issuperset(map(type, value)):  # an embedding's numbers: a thousand texts have 400,000
            return list(value)
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
