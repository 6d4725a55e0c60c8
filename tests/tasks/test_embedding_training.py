"""Sentence embeddings learn as sentence-transformers' losses teach, are judged by what they learned, and are saved so
that sentence-transformers reads them."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warmstart as ws
from support.damage import copy_of
from warmstart.batching import collate, plan_apart
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import DataError, TrainingError, UsageError
from warmstart.rows import Row, read
from warmstart.tasks.sentence_embedding import Embedding

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
WORDS = ("film", "story", "plot", "cast", "good", "bad", "dull", "warm", "happy", "sad", "great", "fun")


def pairs(count: int, *, scores: bool = False, negatives: bool = False) -> list[dict[str, Any]]:
    """Different pairs that share a word or two."""
    made = [f"{a} {b} and {c}" for a, b, c in itertools.permutations(WORDS, 3)]
    return [
        {"text": made[7 * i], "text_pair": made[7 * i + 3]}
        | ({"score": (i % 11) / 10} if scores else {})
        | ({"negative": made[-7 * i - 5]} if negatives else {})
        for i in range(count)
    ]


def ours(folder: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of one batch of all rows, and the gradient of the token embeddings; dropout is off."""
    pipe = ws.load(folder, task="sentence-embedding", options=options, device="cpu")
    known = list(read(rows, fields=pipe.task.fields, targets=True))
    task = pipe.task.learn(known)
    batch = to_tensors(collate(list(task.encode(known, train=True)), task.pads), "cpu")
    losses, weights = task.loss(task.forward(pipe.model, batch), batch)
    assert losses.shape == weights.shape == (len(rows),)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    return loss.detach(), pipe.model.get_input_embeddings().weight.grad


def theirs(folder: Path, rows: list[dict[str, Any]], make: Callable[[Any], Any]) -> tuple[torch.Tensor, torch.Tensor]:
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True).eval()
    names = [name for name in ("text", "text_pair", "negative") if name in rows[0]]
    features = [model.preprocess([row[name] for row in rows]) for name in names]
    scores = [float(row.get("score", 0)) for row in rows]
    highest = max(1, math.ceil(max(scores)))
    loss = make(model)(features, torch.tensor(scores) / highest)
    loss.backward()
    return loss.detach(), model[0].auto_model.get_input_embeddings().weight.grad


def losses() -> dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Any], Any]]]:
    """name -> how the rows are made, our options, their loss."""
    from sentence_transformers.sentence_transformer import losses as reference

    def triplet(model: Any) -> Any:
        return reference.TripletLoss(model, distance_metric=reference.TripletDistanceMetric.COSINE, triplet_margin=0.3)

    return {
        "pairs": ({}, {}, reference.MultipleNegativesRankingLoss),
        "pairs and negatives": ({"negatives": True}, {}, reference.MultipleNegativesRankingLoss),
        "scale": ({}, {"scale": 5}, lambda model: reference.MultipleNegativesRankingLoss(model, scale=5.0)),
        "scores": ({"scores": True}, {}, reference.CosineSimilarityLoss),
        "order of scores": ({"scores": True}, {"objective": "cosent"}, reference.CoSENTLoss),
        "triplets": ({"negatives": True}, {"objective": "triplet", "margin": 0.3}, triplet),
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
@pytest.mark.parametrize("name", ["pairs", "pairs and negatives", "scale", "scores", "order of scores", "triplets"])
def test_the_loss_is_that_of_sentence_transformers(tiny: Callable[..., Path], family: str, name: str) -> None:
    made, options, reference = losses()[name]
    rows, folder = pairs(24, **made), tiny(family, "base")
    (loss, gradient), (wanted, their_gradient) = ours(folder, rows, **options), theirs(folder, rows, reference)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-3, atol=1e-6)
    assert gradient.abs().max() > 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["pairs", "scores"])
def test_the_loss_on_real_pairs_and_the_real_encoder(encoder: Path, name: str) -> None:
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    with (DATA / "similarity" / "train.csv").open(encoding="utf-8", newline="") as file:
        lines = list(itertools.islice(csv.DictReader(file), 200, 264))
    rows: list[dict[str, Any]] = [{"text": line["sentence1"], "text_pair": line["sentence2"]} for line in lines]
    if name == "scores":
        rows = [row | {"score": float(line["score"])} for row, line in zip(rows, lines, strict=True)]
    (loss, gradient), (wanted, their_gradient) = ours(encoder, rows), theirs(encoder, rows, losses()[name][2])
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-2, atol=1e-6)


def test_windows_are_learned_as_they_are_served(tiny: Callable[..., Path]) -> None:
    """The loss of training is that of the embeddings that prediction gives, where texts have several windows."""
    options = {"long_text": "windows", "stride": 2, "max_length": 12}
    rows = [row | {"text": f"{row['text']} " * (1 + i % 4)} for i, row in enumerate(pairs(9, scores=True))]
    loss, _ = ours(tiny("bert", "base"), rows, **options)
    found = ws.evaluate(ws.load(tiny("bert", "base"), task="sentence-embedding", options=options, device="cpu"), rows)
    assert found.loss == pytest.approx(loss.item(), abs=1e-6)
    assert any(prediction.tokens > 24 for prediction in found.predictions)


# --- batches ----------------------------------------------------------------------------------------------------------


def made_batches(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Any:
    task = ws.load(folder, task="sentence-embedding", options=more.pop("options", {}), device="cpu").task
    return ws.batches(rows, task, **({"batch_size": 8, "max_tokens": None} | more))


def test_batches_of_coupled_rows_have_a_fixed_size(tiny: Callable[..., Path]) -> None:
    made = made_batches(tiny("bert", "base"), pairs(45, negatives=True))
    sizes = sorted((batch["slot"] == 0).sum().item() for batch in made)
    assert sizes == [7, 7, 7, 8, 8, 8]
    for batch in made:
        assert sorted(set(batch["slot"].tolist())) == [0, 1, 2]
        assert len(batch["row"]) == 3 * len(set(batch["row"].tolist()))
    rows = [row for batch in made for row in set(batch["row"].tolist())]
    assert sorted(rows) == list(range(45))
    made.set_epoch(1)
    assert [row for batch in made for row in set(batch["row"].tolist())] != rows


def test_a_text_is_not_its_own_wrong_answer(tiny: Callable[..., Path]) -> None:
    """Rows that share a text stand in different batches."""
    rows = pairs(40)
    for i in range(0, 40, 4):
        rows[i + 1]["text_pair"] = rows[i]["text_pair"]
        rows[i + 3]["text"] = rows[i + 2]["text_pair"]
    for batch in made_batches(tiny("bert", "base"), rows):
        texts = [
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert len(set(texts)) == len(texts) == 16


def test_a_text_that_all_rows_share_still_trains_each_row_once() -> None:
    """The plan alone: whether batches of one teach anything is asked of the task, where they are made."""
    keys = [frozenset({b"same", str(i).encode()}) for i in range(50)]
    batches = plan_apart([3] * 50, keys, seed=0, epoch=0, batch_size=8)
    assert sorted(row for batch in batches for row in batch) == list(range(50))
    assert all(len(batch) == 1 for batch in batches)


@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=60), st.integers(1, 9))
@settings(deadline=None)
def test_rows_that_share_nothing_share_a_batch(shared: list[set[int]], batch_size: int) -> None:
    keys = [frozenset(str(key).encode() for key in row) for row in shared]
    batches = plan_apart(list(range(1, len(keys) + 1)), keys, seed=1, epoch=2, batch_size=batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(keys)))
    assert all(len(batch) <= batch_size for batch in batches)
    for batch in batches:
        together = [key for row in batch for key in keys[row]]
        assert len(together) == len(set(together))
    different = [frozenset({bytes([i])}) for i in range(len(keys))]
    sizes = {len(batch) for batch in plan_apart([5] * len(keys), different, seed=1, epoch=2, batch_size=batch_size)}
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size


def test_planning_apart_is_quick_whatever_is_shared() -> None:
    started = time.perf_counter()
    keys = [frozenset({str(i % 7).encode(), str(i).encode()}) for i in range(5_000)]
    batches = plan_apart([9] * 5_000, keys, seed=0, epoch=0, batch_size=32)
    assert sum(map(len, batches)) == 5_000 and len(batches) < 900  # 7 of them go together
    assert time.perf_counter() - started < 10


def one_query(count: int, **more: Any) -> list[dict[str, Any]]:
    return [row | {"text": "good film"} | more for row in pairs(count, scores=True)]


def trained(folder: Path, rows: list[dict[str, Any]], output: Path, **options: Any) -> list[dict[str, Any]]:
    """The steps of a run of batches of 8 rows."""
    config = ws.TrainConfig(epochs=4, batch_size=8, learning_rate=2e-3, warmup=0, device="cpu")
    ws.train(folder, rows, output=output, task="sentence-embedding", options=options, config=config)
    records = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record for record in records if "grad_norm" in record]


def test_rows_of_one_query_are_ordered_together(tiny: Callable[..., Path], tmp_path: Path, caplog: Any) -> None:
    """CoSENT compares the rows that share a text: they stand in one batch, and every step teaches."""
    rows = one_query(17)
    with caplog.at_level(logging.WARNING, "warmstart"):
        steps = trained(tiny("bert", "base"), rows, tmp_path / "run", objective="cosent")
    assert len(steps) == 12  # 3 batches an epoch
    assert all(step["loss"] > 0 and step["grad_norm"] > 0 for step in steps)
    assert "batches" not in caplog.text
    made = made_batches(tiny("bert", "base"), rows, options={"objective": "cosent"})
    assert sorted(len(set(batch["row"].tolist())) for batch in made) == [5, 6, 6]
    before = ws.evaluate(ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu"), rows)
    after = ws.evaluate(ws.load(tmp_path / "run", device="cpu"), rows)
    assert after.metrics["spearman"].value > before.metrics["spearman"].value + 0.1


def test_scores_say_what_is_right_before_an_objective_is_learned(tiny: Callable[..., Path]) -> None:
    made = made_batches(tiny("bert", "base"), one_query(16))  # "auto", which takes the cosine for these
    assert [len(set(batch["row"].tolist())) for batch in made] == [8, 8]


@pytest.mark.parametrize(
    ("rows", "options", "batch_size", "lack"),
    [
        ([row | {"text": "good"} for row in pairs(16)], {}, 8, "a second row, or a `negative`"),
        ([row | {"text_pair": "good"} for row in pairs(16)], {}, 8, "a second row, or a `negative`"),
        (pairs(16), {}, 1, "a second row, or a `negative`"),
        (pairs(1), {}, 8, "a second row, or a `negative`"),
        (one_query(16), {"objective": "cosent"}, 1, "two rows with different scores"),
        (one_query(16, score=0.5), {"objective": "cosent"}, 8, "two rows with different scores"),
    ],
)
def test_batches_that_all_teach_nothing_are_refused(
    tiny: Callable[..., Path], tmp_path: Path, rows: list[dict[str, Any]], options: Any, batch_size: int, lack: str
) -> None:
    config = ws.TrainConfig(max_steps=1, batch_size=batch_size, device="cpu")
    with pytest.raises(DataError) as caught:
        ws.train(
            tiny("bert", "base"),
            rows,
            output=tmp_path / "run",
            task="sentence-embedding",
            options=options,
            config=config,
        )
    assert caught.value.code == "nothing-to-compare" and lack in caught.value.what
    assert f"{len(rows)} rows in" in str(caught.value.value)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="nothing-to-compare"):
        made_batches(tiny("bert", "base"), rows, options=options, batch_size=batch_size)


def test_small_batches_are_said_with_their_numbers(tiny: Callable[..., Path], tmp_path: Path, caplog: Any) -> None:
    """Rows of a few labels: no two of one label share a batch."""
    rows = [{"text": row["text"], "text_pair": ("good", "bad")[i == 0]} for i, row in enumerate(pairs(16))]
    with caplog.at_level(logging.WARNING, "warmstart"):
        steps = trained(tiny("bert", "base"), rows, tmp_path / "run")
    small, idle = (record.message for record in caplog.records if "batches" in record.message)
    assert small.startswith("15 of 15 batches have fewer than half of the 8 rows that batch_size=8 would give them")
    assert "1.1 in the mean, 1 at least" in small and "one text is in 15 rows" in small
    assert idle.startswith("14 of 15 batches do not have a second row, or a `negative`")
    assert sum(step["loss"] > 0 for step in steps) == 4  # one an epoch, as was said


@pytest.mark.parametrize("options", [{}, {"objective": "triplet"}])
def test_a_negative_teaches_where_rows_share_their_text(
    tiny: Callable[..., Path], tmp_path: Path, caplog: Any, options: dict[str, str]
) -> None:
    labels = ("good", "bad")
    rows = [
        {"text": row["text"], "text_pair": labels[i % 2], "negative": labels[1 - i % 2]}
        for i, row in enumerate(pairs(16))
    ]
    with caplog.at_level(logging.WARNING, "warmstart"):
        steps = trained(tiny("bert", "base"), rows, tmp_path / "run", **options)
    assert steps[0]["loss"] > 0 and steps[0]["grad_norm"] > 0
    assert len(steps) == (8 if options else 64)  # triplets are not coupled: batches are whole
    assert ("16 of 16 batches have fewer" in caplog.text) == (not options) and "teach nothing" not in caplog.text


def test_whole_batches_are_not_warned_of(tiny: Callable[..., Path], caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        for count in (2, 3, 9, 45):
            made_batches(tiny("bert", "base"), pairs(count))
    assert "batches" not in caplog.text


@pytest.mark.parametrize("setting", [{"accumulate": 2}, {"max_tokens": 512}])
def test_what_would_split_a_batch_is_refused(
    tiny: Callable[..., Path], tmp_path: Path, setting: dict[str, int]
) -> None:
    config = ws.TrainConfig(max_steps=1, **setting)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        ws.train(tiny("bert", "base"), pairs(8), output=tmp_path / "run", task="sentence-embedding", config=config)
    assert (caught.value.code, caught.value.where.field) == ("rows-coupled", *setting)
    assert not (tmp_path / "run").exists()
    scored = pairs(8, scores=True)  # these do not learn from each other
    ws.train(tiny("bert", "base"), scored, output=tmp_path / "run", task="sentence-embedding", config=config)


def test_a_persons_own_loop_needs_a_number_of_rows(tiny: Callable[..., Path]) -> None:
    for more in ({"batch_size": None}, {"max_tokens": 100}):
        with pytest.raises(UsageError) as caught:
            made_batches(tiny("bert", "base"), pairs(8), **more)
        assert caught.value.code == "rows-coupled"


# --- saving -----------------------------------------------------------------------------------------------------------


def test_sentence_transformers_reads_a_saved_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = copy_of(tiny("bert", "base"), tmp_path / "start")
    for name, content in {
        "modules.json": [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True},
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    run = ws.train(
        folder,
        pairs(16, scores=True),
        output=tmp_path / "run",
        task="sentence-embedding",
        validation=pairs(20, scores=True)[16:],
        config=ws.TrainConfig(epochs=2, batch_size=4, learning_rate=1e-3, device="cpu"),
        options={"max_length": 9, "prompt": "good film: "},
    )
    texts = ["a film", "the story never begins and never ends", "b"]
    vectors = np.array([prediction.embedding for prediction in run.pipeline(texts)])
    again = ws.load(run.path, device="cpu")
    assert (again.task.pooling, again.task.normalize, again.task.prompt) == ("max", True, "good film: ")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(np.array([prediction.embedding for prediction in again(texts)]), vectors)
    model = SentenceTransformer(str(run.model), device="cpu", local_files_only=True)
    assert model.max_seq_length == 9
    np.testing.assert_allclose(model.encode(texts, show_progress_bar=False), vectors, atol=1e-5)
    assert set(run.metrics) == {"spearman", "pearson"}


# --- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prompted(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    folder = copy_of(tiny("bert", "base"), tmp_path / "prompted")
    content = {"prompts": {"query": "good film: ", "document": "sad story: ", "bare": "good film"}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        ({}, "", ""),
        ({"prompt": "query"}, "good film: ", "good film: "),
        ({"prompt": "query", "pair_prompt": "document"}, "good film: ", "sad story: "),
        ({"prompt": "query", "pair_prompt": ""}, "good film: ", ""),
        ({"prompt": "bad: ", "pair_prompt": "dull\n"}, "bad: ", "dull\n"),
        ({"prompt": "good film"}, "good film", "good film"),  # as a saved run has the text of a stored prompt
    ],
)
def test_prompts_stand_before_their_texts(prompted: Path, options: dict[str, str], first: str, second: str) -> None:
    plain = ws.load(prompted, task="sentence-embedding", device="cpu")
    with_prompt = ws.load(prompted, task="sentence-embedding", options=options, device="cpu")
    assert with_prompt("a plot").embedding == plain(f"{first}a plot").embedding
    assert with_prompt(("a plot", "fun")).similarity == plain((f"{first}a plot", f"{second}fun")).similarity


@pytest.mark.parametrize(("first", "second"), [("bad: ", "dull: "), ("bad: ", ""), ("", "dull: ")])
def test_sentence_transformers_reads_both_prompts_of_a_saved_run(
    tiny: Callable[..., Path], tmp_path: Path, first: str, second: str
) -> None:
    from sentence_transformers import SentenceTransformer

    run = ws.train(
        tiny("bert", "base"), pairs(8), output=tmp_path / "run", task="sentence-embedding",
        options={"prompt": first, "pair_prompt": second}, config=ws.TrainConfig(max_steps=1, device="cpu"),
    )  # fmt: skip
    again = ws.load(run.path, device="cpu").task
    assert (again.prompt, again.pair_prompt) == (first, second)  # type: ignore[attr-defined]
    model = SentenceTransformer(str(run.model), device="cpu", local_files_only=True)
    assert {name: model.prompts[name] for name in ("query", "document")} == {"query": first, "document": second}
    prediction = run.pipeline(("a film", "the story"))
    query = model.encode_query(["a film"], show_progress_bar=False)[0]
    document = model.encode_document(["the story"], show_progress_bar=False)[0]
    np.testing.assert_allclose(query, prediction.embedding, atol=1e-5)
    np.testing.assert_allclose(document, prediction.others[1], atol=1e-5)


@pytest.mark.parametrize("value", ["qurey", "good", 3, None, ["query"]])
def test_a_prompt_that_is_none(prompted: Path, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        ws.load(prompted, task="sentence-embedding", options={"prompt": value}, device="cpu")
    assert caught.value.code == "option-value" and "'query'" in caught.value.what


# --- judging ----------------------------------------------------------------------------------------------------------


def test_scored_pairs_are_judged_by_rank(tiny: Callable[..., Path]) -> None:
    rows = pairs(60, scores=True)
    pipe = ws.load(tiny("roberta", "base"), task="sentence-embedding", device="cpu")
    result = ws.evaluate(pipe, [row | {"score": 5 * row["score"]} for row in rows])
    cosines = [pipe((row["text"], row["text_pair"])).similarity for row in rows]
    scores = [row["score"] for row in rows]
    assert result.metrics["spearman"].value == pytest.approx(scipy.stats.spearmanr(scores, cosines).statistic, abs=1e-3)
    assert result.metrics["pearson"].value == pytest.approx(scipy.stats.pearsonr(scores, cosines).statistic, abs=1e-4)
    assert result.primary == "spearman"
    # Scores up to 5 are divided by 5, as in training.
    np.testing.assert_allclose(result.per_example["loss"], (np.array(cosines) - scores) ** 2, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 100, 1 << 22])
def test_pairs_are_judged_by_the_rank_of_their_own(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr("warmstart.tasks.embedding_objectives._CHUNK", chunk)
    rows = pairs(30, negatives=True)
    del rows[4]["negative"]
    rows[9]["text_pair"] = rows[8]["text_pair"]  # equal texts do not outrank each other
    pipe = ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")
    result = ws.evaluate(pipe, rows)
    texts = [row["text_pair"] for row in rows] + [row["negative"] for row in rows if "negative" in row]
    first = np.array([prediction.embedding for prediction in pipe([row["text"] for row in rows])])
    others = np.array([prediction.embedding for prediction in pipe(texts)])
    cosines = (first @ others.T) / np.linalg.norm(first, axis=1)[:, None] / np.linalg.norm(others, axis=1)
    ranks = []
    for i in range(30):
        better = {text for j, text in enumerate(texts) if cosines[i, j] > cosines[i, i] and text != texts[i]}
        ranks.append(1 + sum(texts.count(text) for text in better))
    assert result.metrics["mrr"].value == pytest.approx(np.mean(1 / np.array(ranks)), abs=1e-6)
    assert result.metrics["accuracy"].value == pytest.approx(np.mean(np.array(ranks) == 1))
    logits = 20 * cosines
    wanted = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(30), np.arange(30)]
    np.testing.assert_allclose(result.per_example["loss"], wanted, atol=1e-4)


def test_a_pair_has_a_similarity_and_a_single_text_none(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")
    pair, one, other = pipe(("a film", "a plot")), pipe("a film"), pipe("a plot")
    a, b = np.array(one.embedding), np.array(other.embedding)
    assert pair.similarity == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert pair.embedding == pytest.approx(one.embedding, abs=1e-6)
    assert one.similarity is None
    assert pair.tokens == one.tokens + other.tokens


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(tiny: Callable[..., Path]) -> Embedding:
    made = ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu").task
    assert isinstance(made, Embedding)
    return made


def placed(rows: list[dict[str, Any]]) -> list[Row]:
    return list(read(rows, fields=Embedding.fields, targets=True))


def test_rows_say_the_objective(task: Embedding) -> None:
    assert task.learn(placed(pairs(4))).objective == "in-batch-negatives"
    assert task.learn(placed(pairs(4))).couples_rows
    learned = task.learn(placed([row | {"score": 4.5} for row in pairs(4)]))
    assert (learned.objective, learned.max_score, learned.couples_rows) == ("cosine", 5, False)
    assert dataclasses.replace(task, max_score=10).learn(placed(pairs(4, scores=True))).max_score == 10


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"text_pair": None}, "field-missing", "text_pair"),
        ({"score": None}, "score-missing", "score"),
        ({"score": "high"}, "target-not-number", "score"),
        ({"score": float("inf")}, "target-not-number", "score"),
    ],
)
def test_a_row_that_cannot_be_learned_from(task: Embedding, change: dict[str, Any], code: str, field: str) -> None:
    healthy = [
        Row(row, where) for row, where in zip(pairs(4, scores=True), (r.where for r in placed(pairs(4))), strict=True)
    ]
    assert len(list(task.encode(healthy, train=True))) == 8
    bad = [*healthy[:2], Row(healthy[2] | change, healthy[2].where), healthy[3]]
    for call in (task.learn, lambda rows: list(task.encode(rows, train=True))):
        with pytest.raises(DataError) as caught:
            call(bad)
        assert (caught.value.code, caught.value.where.row, caught.value.where.field) == (code, 2, field)


@pytest.mark.parametrize(
    ("objective", "rows"),
    [
        ("cosine", pairs(4)),
        ("cosent", pairs(4)),
        ("in-batch-negatives", pairs(4, scores=True)),
        ("triplet", pairs(4, scores=True, negatives=True)),
    ],
)
def test_an_objective_that_the_rows_do_not_allow(task: Embedding, objective: Any, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError) as caught:
        dataclasses.replace(task, objective=objective).learn(placed(rows))
    assert caught.value.code == "objective-without-data"


def test_triplets_need_a_negative_in_every_row(task: Embedding) -> None:
    rows = placed(pairs(4, negatives=True))
    chosen = dataclasses.replace(task, objective="triplet")
    assert chosen.learn(rows).objective == "triplet"
    del rows[1]["negative"]
    with pytest.raises(DataError) as caught:
        chosen.learn(rows)
    assert (caught.value.code, caught.value.where.row, caught.value.where.field) == ("field-missing", 1, "negative")


def test_a_loss_that_is_no_number_ends_the_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        ws.train(
            tiny("bert", "base"),
            pairs(16),
            output=tmp_path / "run",
            task="sentence-embedding",
            config=ws.TrainConfig(learning_rate=1e30, clip=None, epochs=5, batch_size=8, device="cpu"),
        )
