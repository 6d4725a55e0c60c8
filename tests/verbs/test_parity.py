"""The parity gate: what it must see, and what it must not take for a difference. Changed runtimes play the exports."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warmstart as ws
from support.exports import rows
from warmstart.batching import Shapes
from warmstart.errors import DataError, WarmstartError
from warmstart.features import Array, Batch
from warmstart.rows import Row
from warmstart.verbs.parity import FP32, INT8, Answers, Gate, Parity, require

Change = Callable[[Batch, dict[str, Array]], dict[str, Array]]


@dataclass(frozen=True)
class Changed:
    """A runtime that answers as another one, but for a change."""

    inner: Any
    change: Change
    device: str = "cpu"
    shapes: Shapes = Shapes(4096)

    def run(self, batch: Batch) -> dict[str, Array]:
        return self.change(batch, self.inner.run(batch))


@pytest.fixture(scope="module")
def pipe(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert"), device="cpu")


@pytest.fixture(scope="module")
def embedder(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")


def judged(pipe: ws.Pipeline, change: Change, tolerance: ws.Tolerance = FP32, count: int = 256) -> Parity:
    exported = dataclasses.replace(pipe, runtime=Changed(pipe.runtime, change))
    return Gate.of(pipe, rows(count), tolerance).measure(exported)


def test_the_same_is_the_same(pipe: ws.Pipeline) -> None:
    parity = judged(pipe, lambda batch, outputs: outputs)
    assert parity.passed and require(parity, "twin") is parity
    assert (parity.rows, parity.rows_alone, parity.agreement, parity.flips) == (256, 256, 1.0, ())
    assert parity.difference < 1e-6 and parity.error < 1e-5 and parity.cosine is None


def test_a_small_difference_is_seen_where_no_decision_changes(pipe: ws.Pipeline) -> None:
    parity = judged(pipe, lambda batch, outputs: {"logits": outputs["logits"] + 1e-3})
    assert not parity.passed and parity.agreement == 1
    assert parity.difference == pytest.approx(1e-3, rel=1e-2)
    assert judged(pipe, lambda batch, outputs: {"logits": outputs["logits"] + 1e-5}).passed
    numbers_aside = dataclasses.replace(INT8, error=None)
    assert judged(pipe, lambda batch, outputs: {"logits": outputs["logits"] + 1e-3}, numbers_aside).passed


LONG = 20  # tokens; some rows have more, and some fewer


def _flip_long(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
    long = np.array([feature.length > LONG for feature in batch.features])
    return {"logits": np.where(long[:, None], outputs["logits"][:, ::-1], outputs["logits"])}


def test_every_flipped_row_is_listed(pipe: ws.Pipeline) -> None:
    parity = judged(pipe, _flip_long, dataclasses.replace(INT8, agreement=0.3, error=None))
    lengths = [feature.length for feature in pipe.task.encode(rows(256))]
    long = [i for i, length in enumerate(lengths) if length > LONG]
    assert 10 < len(long) < 246
    assert [flip.row for flip in parity.flips if not flip.alone] == long
    assert [flip.row for flip in parity.flips if flip.alone] == long
    assert parity.agreement == pytest.approx(1 - len(long) / 256)
    assert all("NEGATIVE" in flip.expected + flip.got for flip in parity.flips)
    assert parity.passed  # it is the person's tolerance that decides


def test_a_refusal_lists_rows_and_says_what_to_do(pipe: ws.Pipeline) -> None:
    parity = judged(pipe, _flip_long)
    with pytest.raises(WarmstartError) as caught:
        require(parity, "openvino graph")
    assert caught.value.code == "parity-failed" and caught.value.exit_code == 1
    assert "openvino graph" in caught.value.what and f"row {parity.flips[0].row}:" in caught.value.what
    assert f"{len(parity.flips) - 10} rows more" in caught.value.what
    assert len(parity.failures) == 2  # agreement, and the difference of the logits


def test_a_graph_that_is_wrong_for_one_row_alone_is_seen(pipe: ws.Pipeline) -> None:
    def wrong_alone(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
        return {"logits": outputs["logits"][:, ::-1] if len(batch) == 1 else outputs["logits"]}

    parity = judged(pipe, wrong_alone)
    assert parity.agreement == 0 and {flip.alone for flip in parity.flips} == {True}


def test_a_graph_that_is_wrong_in_batches_is_seen(pipe: ws.Pipeline) -> None:
    def wrong_together(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
        return {"logits": outputs["logits"] * (1 if len(batch) == 1 else -1)}

    parity = judged(pipe, wrong_together)
    assert parity.agreement < 1 and {flip.alone for flip in parity.flips} == {False}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_number_is_an_infinite_difference(pipe: ws.Pipeline, value: float) -> None:
    def holed(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
        outputs["logits"][0, 0] = value
        return outputs

    with np.errstate(all="ignore"):
        parity = judged(pipe, holed)
    assert parity.difference == np.inf and not parity.passed


def test_embeddings_are_compared_by_cosine(embedder: ws.Pipeline) -> None:
    def turned(angle: float) -> Change:
        def turn(batch: Batch, outputs: dict[str, Array]) -> dict[str, Array]:
            vectors = outputs["embedding"]
            aside = np.roll(vectors, 1, axis=1)
            aside -= (aside * vectors).sum(1, keepdims=True) / (vectors**2).sum(1, keepdims=True) * vectors
            aside *= np.linalg.norm(vectors, axis=1, keepdims=True) / np.linalg.norm(aside, axis=1, keepdims=True)
            return {"embedding": np.cos(angle) * vectors + np.sin(angle) * aside}

        return turn

    parity = judged(embedder, turned(0.1), INT8)
    assert parity.passed and parity.cosine == pytest.approx(np.cos(0.1), abs=1e-4)
    parity = judged(embedder, turned(0.6), INT8)
    assert not parity.passed and parity.agreement == 1 and len(parity.failures) == 2  # the cosine, and the error
    assert parity.cosine == pytest.approx(np.cos(0.6), abs=1e-4)


def test_what_stands_at_padding_does_not_count() -> None:
    lengths = [2, 3]
    alone = Answers(
        lengths, lengths, [{"start": np.zeros(n), "logits": np.ones(2)} for n in lengths], [None] * 2, ["", ""]
    )
    assert alone.per_token() == {"start"}
    padded = Answers([2], [2], [{"start": np.array([1.0, 2.0, 9e9]), "logits": np.array([3.0, 4.0])}], [None], [""])
    [numbers] = padded.numbers(alone.per_token())
    assert numbers.tolist() == [3, 4, 1, 2]  # by name: logits, start


def test_few_rows_are_refused_and_may_be_allowed(pipe: ws.Pipeline) -> None:
    with pytest.raises(DataError) as caught:
        Gate.of(pipe, rows(255), FP32)
    assert caught.value.code == "parity-rows-too-few" and "--parity-rows" in caught.value.fix
    assert Gate.of(pipe, rows(8), ws.Tolerance(rows=8)).measure(pipe).passed


def test_rows_of_one_length_are_said(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    same = [Row({"text": "good words"})] * 4
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        Gate.of(pipe, same, ws.Tolerance(rows=4))
    assert "one length" in caplog.text


def test_a_report_is_plain_values(pipe: ws.Pipeline) -> None:
    report = judged(pipe, _flip_long).as_dict()
    assert report["passed"] is False and report["rows"] == 256 and report["tolerance"]["agreement"] == 1.0
    assert set(report["flips"][0]) == {"row", "where", "expected", "got", "alone"}
