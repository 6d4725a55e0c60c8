"""Rerank: scores and losses are those of sentence-transformers' CrossEncoder, over real texts."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

import warmstart as ws
from support.damage import copy_of, edit_json
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import CheckpointError, DataError, UsageError
from warmstart.features import Feature
from warmstart.rows import Row, read
from warmstart.tasks.rerank import Rerank, Reranked

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
ROWS: list[dict[str, Any]] = [
    {"query": "a good film", "passages": ["bad", "a great and warm film", "the story"], "labels": [0, 1, 0]},
    {"query": "who is happy", "passages": ["the cast is happy", "it is dull"], "labels": [1, 0]},
    {"query": "is it fun to learn", "passages": ["fun to learn", "never", "sad words", "0123"], "labels": [1, 0, 0, 0]},
    {"query": "worst", "passages": "two hours of my life", "labels": 0},
]


def cross_encoder(folder: Path) -> Any:
    from sentence_transformers import CrossEncoder

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    return CrossEncoder(str(folder), device="cpu", local_files_only=True)


def checkpoint(tiny: Callable[..., Path], family: str, target: Path) -> Path:
    """One whose tokenizer hands out token types where the model has them, as every published BERT's does."""
    made = copy_of(tiny(family, labels=("score",)), target)
    types = ["token_type_ids"] if family == "bert" else []
    edit_json(made / "tokenizer_config.json", {"model_input_names": ["input_ids", *types, "attention_mask"]})
    return made


def scores_of(prediction: Reranked) -> list[float]:
    """By passage."""
    return [result["score"] for result in sorted(prediction.results, key=lambda result: result["index"])]


def load(folder: Path, **options: Any) -> ws.Pipeline:
    return ws.load(folder, task="rerank", options=options, device="cpu")


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return checkpoint(tiny, "bert", tmp_path / "checkpoint")


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "distilbert"])
def test_two_hundred_real_passages(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    found = json.loads((DATA / "answers" / "xquad.en.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in found["data"] for paragraph in article["paragraphs"]]
    contexts = [paragraph["context"] for paragraph in paragraphs[:200]]  # many are over the limit of 128 tokens
    queries = [paragraph["qas"][0]["question"] for paragraph in paragraphs[:4]]
    rows = [{"query": query, "passages": contexts[50 * i : 50 * (i + 1)]} for i, query in enumerate(queries)]
    folder = checkpoint(tiny, family, tmp_path / family)
    predictions, reference = load(folder)(rows), cross_encoder(folder)
    for row, prediction in zip(rows, predictions, strict=True):
        ranked = reference.rank(row["query"], row["passages"], show_progress_bar=False)
        wanted = {result["corpus_id"]: float(result["score"]) for result in ranked}
        assert scores_of(prediction) == pytest.approx([wanted[i] for i in range(50)], abs=1e-6)
        found_scores = [result["score"] for result in prediction.results]
        assert found_scores == sorted(found_scores, reverse=True)
    assert any(prediction.truncated for prediction in predictions)


@pytest.mark.parametrize(
    ("config", "activation"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, "sigmoid"),
        ({"sentence_transformers": {"version": "4.0"}}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
    ],
)
def test_the_checkpoint_says_how_logits_become_scores(
    folder: Path, tmp_path: Path, config: dict[str, Any], activation: str
) -> None:
    made = copy_of(folder, tmp_path / "model")
    edit_json(made / "config.json", config)
    pipe = load(made)
    assert pipe.task.activation == activation  # type: ignore[attr-defined]
    wanted = cross_encoder(made).predict([("a good film", passage) for passage in ROWS[0]["passages"]])
    assert scores_of(pipe(ROWS[0])) == pytest.approx(wanted.tolist(), abs=1e-6)
    assert load(made, activation="identity").task.activation == "identity"  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1], [0.5, 1, 0.25, 0, 0.125], [5, 0, 2.5, 1, 4]])
def test_the_loss_is_that_of_sentence_transformers(
    tiny: Callable[..., Path], tmp_path: Path, family: str, labels: list[float]
) -> None:
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    pairs = [
        ("a good film", "bad"),
        ("who", "the cast is happy"),
        ("fun", "fun to learn"),
        ("a", "b"),
        ("sad", "dull plot"),
    ]
    rows = [
        {"query": query, "passages": passage, "labels": label}
        for (query, passage), label in zip(pairs, labels, strict=True)
    ]
    folder = checkpoint(tiny, family, tmp_path / family)
    pipe, reference = load(folder), cross_encoder(folder)
    known = list(read(rows, fields=Rerank.fields, targets=True))
    task = pipe.task.learn(known)
    batch = to_tensors(collate(list(task.encode(known, train=True)), task.pads), "cpu")
    losses, weights = task.loss(task.forward(pipe.model, batch), batch)
    scaled = torch.tensor(labels) / max(1, math.ceil(max(labels)))
    queries, passages = map(list, zip(*pairs, strict=True))
    wanted = BinaryCrossEntropyLoss(reference.eval())([queries, passages], scaled)
    torch.testing.assert_close((losses * weights).sum() / weights.sum(), wanted, rtol=1e-5, atol=1e-6)


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_bare_encoder_learns_to_rank_and_is_read_by_sentence_transformers(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    config = ws.TrainConfig(epochs=40, batch_size=4, learning_rate=5e-3, warmup=0, evaluate_every=40, device="cpu")
    run = ws.train(
        tiny("roberta", "base"), ROWS, output=tmp_path / "run", task="rerank", validation=ROWS, config=config
    )
    assert run.metrics["ndcg"].value == run.metrics["mrr"].value == 1
    assert run.validation is not None and run.validation.primary == "ndcg"
    prediction = run.pipeline(ROWS[0])
    assert prediction.results[0]["index"] == 1
    again = ws.load(run.path, device="cpu")
    assert again.task.name == "rerank"
    assert scores_of(again(ROWS[0])) == pytest.approx(scores_of(prediction), abs=1e-6)
    wanted = cross_encoder(run.model).predict([("a good film", passage) for passage in ROWS[0]["passages"]])
    assert scores_of(prediction) == pytest.approx(wanted.tolist(), abs=1e-6)


def test_grades_are_learned_and_a_head_that_fits_goes_on(folder: Path, tmp_path: Path) -> None:
    grades = [
        {"query": "film", "passages": "great good warm"[: 5 + 5 * i], "labels": grade}
        for i, grade in enumerate((1.0, 2.5, 5.0))
    ]
    before = load(folder)(grades)
    config = ws.TrainConfig(epochs=1, max_steps=1, batch_size=3, learning_rate=1e-9, device="cpu")
    run = ws.train(folder, grades, output=tmp_path / "run", task="rerank", config=config)
    assert run.pipeline.task.max_score == 5  # type: ignore[attr-defined]
    for old, new in zip(before, run.pipeline(grades), strict=True):
        assert scores_of(new) == pytest.approx(scores_of(old), abs=1e-5)  # a fresh head would differ


# --- decoding and judging ---------------------------------------------------------------------------------------------


@pytest.fixture
def task(folder: Path) -> Rerank:
    made = load(folder).task
    assert isinstance(made, Rerank)
    return made


def decode(task: Rerank, logits: list[list[float]]) -> Reranked:
    """`logits`: the windows of each passage."""
    features, outputs = [], []
    for passage, windows in enumerate(logits):
        for logit in windows:
            meta = {"passage": passage, "truncated": False, "flags": ("empty-text",) if passage == 1 else ()}
            features.append(Feature(0, len(features), {}, meta=meta, length=3))
            outputs.append({"logits": np.array([logit], np.float32)})
    return task.decode(Row({}), features, outputs)


def test_the_best_window_counts_and_ties_keep_their_order(task: Rerank) -> None:
    found = decode(dataclasses.replace(task, activation="identity"), [[1.0, 3.0], [3.0], [-2.0], [3.5, -9.0]])
    assert found.results == (
        {"index": 3, "score": 3.5},
        {"index": 0, "score": 3.0},
        {"index": 1, "score": 3.0},
        {"index": 2, "score": -2.0},
    )
    assert (found.tokens, found.flags) == (18, ("empty-text",))
    extreme = decode(task, [[-1000.0], [1000.0]])
    assert [result["score"] for result in extreme.results] == [1.0, 0.0]


def test_windows_read_all_of_a_passage(folder: Path) -> None:
    passage = "bad words " * 60
    row = {"query": "good", "passages": ["a", passage]}
    cut, whole = load(folder, max_length=32)(row), load(folder, max_length=32, long_text="windows", stride=8)(row)
    assert cut.truncated and not whole.truncated
    assert whole.tokens > 120 > cut.tokens
    reached = scores_of(whole)[1]
    assert reached >= scores_of(cut)[1] - 1e-3


def test_windows_are_learned_by_their_best(folder: Path) -> None:
    pipe = load(folder, max_length=16, long_text="windows", stride=4)
    rows = list(
        read(
            [row | {"passages": [f"{p} " * 9 for p in row["passages"]]} for row in ROWS[:3]],
            fields=Rerank.fields,
            targets=True,
        )
    )
    batch = to_tensors(collate(list(pipe.task.encode(rows, train=True)), pipe.task.pads), "cpu")
    with torch.inference_mode():
        losses, weights = pipe.task.loss(pipe.task.forward(pipe.model, batch), batch)
    assert len(batch) > len(losses) == 9 and weights.sum().item() == pytest.approx(3)
    judged = ws.evaluate(pipe, rows)
    assert (losses * weights).sum().item() / 3 == pytest.approx(judged.loss, abs=1e-6)


def judged(task: Rerank, logits: list[list[float]], rows: list[dict[str, Any]]) -> Any:
    predictions = [decode(task, [[value] for value in row]) for row in logits]
    return task.score(predictions, [Row(row) for row in rows])


def test_judging_is_scikit_learns(task: Rerank) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 2, 6).tolist() for _ in range(40)]
    logits = [(rng.standard_normal(6) + np.array(row)).tolist() for row in labels]
    rows = [{"query": f"q{i}", "passages": list("abcdef"), "labels": row} for i, row in enumerate(labels)]
    found = judged(task, logits, rows)
    with_answer = [i for i, row in enumerate(labels) if any(row)]
    assert found.metrics["ndcg"].value == pytest.approx(
        np.mean([sklearn.metrics.ndcg_score([labels[i]], [logits[i]]) for i in with_answer])
    )
    ranks = [min(1 + sum(z > logits[i][k] for z in logits[i]) for k in range(6) if labels[i][k]) for i in with_answer]
    assert found.metrics["mrr"].value == pytest.approx(np.mean(1 / np.array(ranks)))
    flat, scores = list(itertools.chain(*labels)), list(itertools.chain(*logits))
    assert found.metrics["auroc"].value == pytest.approx(sklearn.metrics.roc_auc_score(flat, scores))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(logits), torch.tensor(labels, dtype=torch.float32), reduction="none"
    )
    np.testing.assert_allclose(found.per_example["loss"], wanted.mean(dim=1).numpy(), atol=1e-5)
    # One pair a row is the same, told query by query.
    pairs = [
        {"query": row["query"], "passages": passage, "labels": label}
        for row in rows
        for passage, label in zip(row["passages"], row["labels"], strict=True)
    ]
    apart = judged(task, [[value] for value in scores], pairs)
    for name in ("ndcg", "mrr", "auroc"):
        assert apart.metrics[name].value == pytest.approx(found.metrics[name].value)


def test_grades_are_judged_by_rank(task: Rerank) -> None:
    grades, logits = [0.5, 3.0, 1.0, 4.5], [0.1, 0.9, 0.4, 0.3]
    rows = [{"query": f"q{i}", "passages": "a", "labels": grade} for i, grade in enumerate(grades)]
    found = judged(task, [[value] for value in logits], rows)
    assert found.primary == "spearman" and set(found.metrics) == {"spearman"}
    assert found.metrics["spearman"].value == pytest.approx(scipy.stats.spearmanr(grades, logits).statistic)
    rows.append({"query": "q0", "passages": "b", "labels": 0.25})
    shared = judged(task, [[value] for value in (*logits, 0.0)], rows)
    assert shared.primary == "spearman" and shared.metrics["ndcg"].value == 1  # of the one query that two rows share


# --- rows and faults --------------------------------------------------------------------------------------------------


def test_rows_in_every_form(folder: Path) -> None:
    pipe = load(folder)
    one = pipe({"query": "a good film", "passages": ["bad"]})
    assert one == pipe(("a good film", "bad")) == pipe({"query": "a good film", "passages": "bad"})
    [read_row] = read([{"question": "a good film", "documents": ["bad"]}], fields=Rerank.fields)
    assert next(pipe.predict_rows([read_row])) == one


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"passages": []}, "passages-empty", "passages"),
        ({"passages": ["a", 3]}, "field-not-text", "passages"),
        ({"passages": {"a": 1}}, "field-not-text", "passages"),
        ({"query": None}, "field-missing", "query"),
        ({"labels": [1]}, "labels-count", "labels"),
        ({"labels": 1}, "labels-count", "labels"),
        ({"labels": [0, 1, -1]}, "relevance-negative", "labels"),
        ({"labels": [0, 1, "yes"]}, "target-not-number", "labels"),
        ({"labels": [0, 1, None]}, "target-not-number", "labels"),
    ],
)
def test_a_row_that_cannot_be_ranked(task: Rerank, change: dict[str, Any], code: str, field: str) -> None:
    rows = list(read([ROWS[1], ROWS[0]], fields=Rerank.fields, targets=True))
    assert len(list(task.encode(rows, train=True))) == 5
    rows[1] = Row(rows[1] | change, rows[1].where)
    with pytest.raises(DataError) as caught:
        list(task.encode(rows, train=True))
    assert (caught.value.code, caught.value.where.row, caught.value.where.field) == (code, 1, field)


def test_a_head_of_several_outputs_is_no_reranker(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tiny("bert", labels=("a", "b", "c")))(ROWS[0])
    assert (caught.value.code, caught.value.value) == ("rerank-outputs", 3)
    unnamed = copy_of(tiny("bert", labels=("a", "b")), tmp_path / "unnamed")
    config = json.loads((unnamed / "config.json").read_text())
    (unnamed / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id")})
    )
    with pytest.raises(CheckpointError) as caught:
        load(unnamed)(ROWS[0])
    assert caught.value.code == "rerank-outputs"
    config = ws.TrainConfig(max_steps=1, device="cpu")
    run = ws.train(tiny("bert", labels=("a", "b", "c")), ROWS, output=tmp_path / "run", task="rerank", config=config)
    assert len(run.pipeline(ROWS[0]).results) == 3  # a fresh head


@pytest.mark.parametrize("name", ["torch.nn.modules.activation.Tanh", "os.system", 3, ["torch"]])
def test_an_activation_nobody_knows_is_refused_and_not_imported(folder: Path, tmp_path: Path, name: object) -> None:
    made = copy_of(folder, tmp_path / "model")
    edit_json(made / "config.json", {"sentence_transformers": {"activation_fn": name}})
    with pytest.raises(CheckpointError) as caught:
        load(made)
    assert caught.value.code == "rerank-activation-unknown" and "config.json" in str(caught.value.where)
    assert load(made, activation="sigmoid")(ROWS[0]) == load(folder)(ROWS[0])


def test_one_output_has_one_name(folder: Path) -> None:
    assert ws.load(folder, task="rerank", labels=["relevance"], device="cpu").task.labels == ("relevance",)  # type: ignore[attr-defined]
    with pytest.raises(UsageError) as caught:
        ws.load(folder, task="rerank", labels=["a", "b"], device="cpu")
    assert caught.value.code == "rerank-one-label"
