"""The parity gate: a checkpoint in another form is accepted only if it answers as the one it was made from.

Both pipelines predict the same rows, whole: tokenizer, graph and decoding. The exported one does it twice, in batches
of rows of like length and one row at a time, because a graph may be right for one shape and wrong for another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from warmstart.engine import MAX_TOKENS
from warmstart.engine.predict import by_row, run_features
from warmstart.errors import DataError, WarmstartError, shorten
from warmstart.features import Array, Feature
from warmstart.pipeline import Pipeline
from warmstart.rows import Row
from warmstart.tasks import as_dict
from warmstart.tasks.contract import Generates, NeedsExam

log = logging.getLogger("warmstart")

_ALONE = 256  # rows that are also run one at a time
_ABOUT_THE_TEXT = ("tokens", "truncated", "flags")


@dataclass(frozen=True)
class Tolerance:
    """How far an exported checkpoint may be from its source. None: not looked at.

    `rows`: the fewest rows to judge on. `agreement`: the least share of rows with the same decision (label, entities,
    answer, order: all of a prediction but its numbers). `difference`: the largest difference of any output, such as a
    logit. `error`: the root mean square of the differences, relative to the outputs' own spread; looked at where a
    prediction is nothing but numbers. `cosine`: the least cosine between two embeddings of one text.
    """

    rows: int = 256
    agreement: float = 1.0
    difference: float | None = 1e-4
    error: float | None = None
    cosine: float | None = 0.99999


FP32 = Tolerance()
INT8 = Tolerance(agreement=0.99, difference=None, error=0.2, cosine=0.95)


@dataclass(frozen=True)
class Flip:
    """A row that the two checkpoints decide differently. `row`: its position among the rows of the gate."""

    row: int
    where: str  # file and line, where the row came from a file
    expected: str
    got: str
    alone: bool  # in a batch of its own, or in one with others


@dataclass(frozen=True)
class Parity:
    """What the gate saw. Shares and cosines are 1, differences and errors 0, of an identical checkpoint."""

    rows: int
    rows_alone: int  # of these, also at batch size 1
    agreement: float
    difference: float  # largest, of any output
    error: float  # root mean square, relative to the outputs' own standard deviation
    cosine: float | None  # least; of embeddings only
    flips: tuple[Flip, ...]  # every row that is decided differently
    tolerance: Tolerance
    failures: tuple[str, ...]  # which of the tolerances are exceeded, one sentence each

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `export.json` and `--json`."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Gate:
    """The source's answers, to compare any number of exports with."""

    rows: Sequence[Row]
    tolerance: Tolerance
    expected: Answers

    @classmethod
    def of(cls, source: Pipeline, rows: Sequence[Row], tolerance: Tolerance) -> Gate:
        """Raises DataError `parity-rows-too-few`, and what predicting raises."""
        if len(rows) < tolerance.rows:
            raise DataError(
                "parity-rows-too-few",
                f"an export is judged on {tolerance.rows} rows at least, and there are {len(rows)}",
                value=len(rows),
                fix="give more rows (-d, data=), or lower the number yourself: --parity-rows, Tolerance(rows=…)",
            )
        expected = Answers.of(source, rows, MAX_TOKENS)
        if len(set(expected.lengths)) == 1:
            log.warning("all the rows of the parity gate are of one length: no other is looked at")
        return cls(rows, tolerance, expected)

    def measure(self, exported: Pipeline) -> Parity:
        """Predict the rows with the export, in batches and one by one, and compare."""
        together = Answers.of(exported, self.rows, MAX_TOKENS)
        alone = Answers.of(exported, self.rows[:_ALONE], 1)
        flips = [*self._flips(together, alone=False), *self._flips(alone, alone=True)]
        shares = [
            1 - sum(flip.alone == is_alone for flip in flips) / len(answers.predictions)
            for is_alone, answers in ((False, together), (True, alone))
        ]
        per_token = alone.per_token()
        numbers, theirs = self.expected.numbers(per_token), together.numbers(per_token)
        apart = np.concatenate(
            [_apart(numbers, theirs), _apart(numbers[: len(alone.lengths)], alone.numbers(per_token))]
        )
        spread = _spread(numbers)
        root_mean_square = float(np.sqrt(np.square(apart).mean())) if apart.size else 0.0
        parity = Parity(
            rows=len(self.rows),
            rows_alone=len(alone.predictions),
            agreement=min(shares),
            difference=float(apart.max(initial=0.0)),
            error=root_mean_square / spread if spread else root_mean_square,
            cosine=min([*_cosines(self.expected, together), *_cosines(self.expected, alone)], default=None),
            flips=tuple(flips),
            tolerance=self.tolerance,
            failures=(),
        )
        numbers_only = len(set(self.expected.decisions)) == 1
        return replace(parity, failures=tuple(_failures(parity, numbers_only=numbers_only)))

    def _flips(self, answers: Answers, *, alone: bool) -> list[Flip]:
        return [
            Flip(i, str(self.rows[i].where), shorten(expected), shorten(got), alone)
            for i, (got, expected) in enumerate(zip(answers.decisions, self.expected.decisions, strict=False))
            if got != expected
        ]


def require(parity: Parity, what: str) -> Parity:
    """The report, if everything is within the tolerance. Raises WarmstartError `parity-failed`."""
    if parity.passed:
        return parity
    listed = [f"{flip.where or f'row {flip.row}'}: {flip.expected} became {flip.got}" for flip in parity.flips[:10]]
    raise WarmstartError(
        "parity-failed",
        f"the {what} does not answer as its source and is not kept: {'; '.join(parity.failures)}"
        + "".join(f"\n    {line}" for line in listed)
        + (f"\n    and {len(parity.flips) - 10} rows more" if len(parity.flips) > 10 else ""),
        value=f"{len(parity.flips)} flipped of {parity.rows} rows",
        fix="export with precision fp32, give calibration rows like those it will see, or allow more: --agreement, "
        "Tolerance(…)",
    )


@dataclass(frozen=True)
class Answers:
    """What a pipeline answers to some rows."""

    lengths: list[int]  # tokens of each feature
    widths: list[int]  # how wide each is made where it runs alone
    outputs: list[dict[str, Array]]  # of each feature
    predictions: list[Any]
    decisions: list[str]

    @classmethod
    def of(cls, pipe: Pipeline, rows: Sequence[Row], max_tokens: int) -> Answers:
        # What generates is compared by how probable it finds the rows' own texts: every token's loss is a number, and
        # a hundred new tokens a row, one row at a time, would take an hour to say less.
        examined = isinstance(pipe.task, Generates) and isinstance(pipe.task, NeedsExam)
        encode = pipe.task.exam if examined else pipe.task.encode  # type: ignore[attr-defined]
        features: list[Feature] = list(encode(list(rows)))
        outputs = run_features(pipe.task, pipe.runtime, features, max_tokens=max_tokens)
        predictions = [
            pipe.task.decode(row, [features[i] for i in members], [outputs[i] for i in members])
            for row, members in zip(rows, by_row(features, len(rows)), strict=True)
        ]
        decisions = [repr(_decision(as_dict(prediction))) for prediction in predictions]
        lengths = [feature.length for feature in features]
        widths = [pipe.runtime.shapes.width(1, length) for length in lengths]
        return cls(lengths, widths, outputs, predictions, decisions)

    def per_token(self) -> frozenset[str]:
        """The outputs that have an entry a token; told from features that were run alone."""
        pairs = list(zip(self.widths, self.outputs, strict=True))
        return frozenset(
            name
            for name, array in (self.outputs[0] if self.outputs else {}).items()
            if array.ndim > 0 and all(len(output[name]) == width for width, output in pairs)
        )

    def numbers(self, per_token: frozenset[str]) -> list[Array]:
        """All the floating-point numbers of each feature, in one row, without those that stand at padding."""
        return [
            np.concatenate(
                [
                    (array[:length] if name in per_token else array).astype(np.float64).ravel()
                    for name, array in sorted(output.items())
                    if array.dtype.kind == "f"
                ]
                or [np.zeros(0)]
            )
            for length, output in zip(self.lengths, self.outputs, strict=True)
        ]


def _decision(value: Any, *, top: bool = True) -> Any:
    """A prediction's JSON without its numbers."""
    if isinstance(value, dict):
        return {k: _decision(v, top=False) for k, v in value.items() if not (top and k in _ABOUT_THE_TEXT)}
    if isinstance(value, list):
        return [_decision(item, top=False) for item in value if not isinstance(item, float)]
    return None if isinstance(value, float) else value


def _apart(expected: Sequence[Array], got: Sequence[Array]) -> Array:
    """|difference| of all numbers; infinite for one that is none, and for features that cannot be compared."""
    if len(expected) != len(got) or any(a.shape != b.shape for a, b in zip(expected, got, strict=True)):
        return np.array([np.inf])
    apart = np.abs(np.concatenate(expected) - np.concatenate(got)) if expected else np.zeros(0)
    return np.where(np.isnan(apart), np.inf, apart)


def _spread(numbers: Sequence[Array]) -> float:
    """The standard deviation of all numbers, but for those that stand for "never" (the lowest there are)."""
    together = np.concatenate(numbers) if numbers else np.zeros(0)
    together = together[np.abs(together) < 1e30]
    return float(together.std()) if together.size else 0.0


def _cosines(expected: Answers, run: Answers) -> list[float]:
    """Of each row's embedding, where a prediction is one."""
    found = []
    for ours, theirs in zip(run.predictions, expected.predictions, strict=False):
        values = [as_dict(prediction).get("embedding") for prediction in (ours, theirs)]
        if not all(isinstance(value, list) for value in values):
            return []
        a, b = (np.asarray(value, dtype=np.float64) for value in values)
        found.append(float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30)))
    return found


def _failures(parity: Parity, *, numbers_only: bool) -> list[str]:
    allowed = parity.tolerance
    failures = []
    if parity.agreement < allowed.agreement:
        failures.append(f"{parity.agreement:.2%} of the rows agree, {allowed.agreement:.2%} must")
    if allowed.difference is not None and not parity.difference <= allowed.difference:
        failures.append(f"outputs differ by up to {parity.difference:.2g}, {allowed.difference:.2g} is allowed")
    if allowed.error is not None and numbers_only and not parity.error <= allowed.error:
        failures.append(f"the relative error is {parity.error:.2g}, {allowed.error:.2g} is allowed")
    if allowed.cosine is not None and parity.cosine is not None and parity.cosine < allowed.cosine:
        failures.append(
            f"an embedding has a cosine of {parity.cosine:.4f} to its source, {allowed.cosine} is the least"
        )
    return failures
