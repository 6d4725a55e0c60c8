"""Zero-shot classification is that of transformers where a model knows entailment, and of cosines where it embeds."""

from __future__ import annotations

import itertools
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import warmstart as ws
from support.damage import copy_of, edit_json
from warmstart.errors import CheckpointError, DataError, UsageError
from warmstart.features import Array, Batch
from warmstart.rows import Row
from warmstart.tasks import as_dict
from warmstart.tasks.zero_shot_classification import ZeroShotClassification
from warmstart.tasks.zero_shot_embedding import ZeroShotByEmbedding

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
NLI = ("contradiction", "neutral", "entailment")
LABELS = ("good news", "bad news", "travel", "a story")
TASK = "zero-shot-classification"
WIDER = 10.0


def entail(
    tiny: Callable[..., Path], family: str = "bert", labels: tuple[str, ...] = NLI, **options: Any
) -> ws.Pipeline:
    return ws.load(tiny(family, labels=labels), task=TASK, options={"labels": LABELS} | options, device="cpu")


def embed(source: Path, **options: Any) -> ws.Pipeline:
    return ws.load(source, task=TASK, options={"labels": LABELS} | options, device="cpu")


@pytest.fixture
def telling(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A tiny checkpoint with wider weights: as they are drawn, it answers all pairs alike to the last bits."""

    def make(family: str, labels: tuple[str, ...] = NLI) -> Path:
        folder = copy_of(tiny(family, labels=labels), tmp_path / f"telling-{family}")
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(WIDER)
        model.save_pretrained(folder)
        return folder

    return make


@contextmanager
def reference(folder: Path) -> Iterator[Any]:
    """transformers' pipeline over the folder, without its greetings."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        pipeline = transformers.pipeline(TASK, model=str(folder), device="cpu")
        if pipeline.model.config.model_type == "bert":  # the tiny tokenizer's file does not say so, as real ones do
            pipeline.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        yield pipeline
    finally:
        transformers.logging.set_verbosity(level)


def agree(folder: Path, texts: list[str], options: dict[str, Any]) -> int:
    """Scores are equal to 1e-5, and the labels' order where no two are equal to the last bits: of so many texts."""
    ordered = 0
    ours = ws.load(folder, task=TASK, options=options, device="cpu")(texts)
    arguments = {"candidate_labels" if name == "labels" else name: value for name, value in options.items()}
    with reference(folder) as pipeline:
        for text, prediction in zip(texts, ours, strict=True):
            theirs = pipeline(text, **arguments)
            np.testing.assert_allclose(prediction.scores, theirs["scores"], atol=1e-5)
            if np.diff(theirs["scores"]).max(initial=-1) < -1e-6:  # or two are equal to the last bits
                assert list(prediction.labels) == theirs["labels"]
                ordered += 1
    return ordered


# --- parity with transformers -----------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_real_texts_are_judged_as_transformers_judges_them(telling: Callable[..., Path], family: str) -> None:
    """Four families, the order of the labels compared for 200 texts each; long ones are cut, the hypotheses never."""
    assert agree(telling(family), real_texts(110), {"labels": list(LABELS)}) >= 200


@pytest.mark.real_data
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_real_texts_are_judged_label_by_label_as_transformers_judges_them(
    telling: Callable[..., Path], family: str
) -> None:
    assert agree(telling(family), real_texts(25), {"labels": list(LABELS), "multi_label": True}) >= 40


def real_texts(each: int) -> list[str]:
    """So many reviews, and as many questions of users."""
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    texts = []
    for name in ("reviews", "intents"):
        with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in itertools.islice(lines, each)]
    return texts


@pytest.mark.parametrize("multi_label", [True, False])
@pytest.mark.parametrize(
    "classes",
    [NLI, ("entailment", "neutral", "contradiction"), ("ENTAILMENT", "not_entailment"), ("no", "Entails")],
    ids="-".join,
)
def test_classes_are_found_by_name(telling: Callable[..., Path], classes: tuple[str, ...], multi_label: bool) -> None:
    texts = ["I love this film", "the worst two hours of my life", "a story"]
    options = {"labels": list(LABELS), "multi_label": multi_label, "hypothesis_template": "It is about {} words."}
    assert agree(telling("bert", classes), texts, options) == 3


def test_one_label_is_judged_against_its_contradiction(telling: Callable[..., Path]) -> None:
    agree(telling("bert"), ["I love this film", "bad"], {"labels": ["good"]})


def test_a_contradiction_that_stands_in_the_middle_is_found(tiny: Callable[..., Path]) -> None:
    """transformers takes the first class for it, whatever its name."""
    task = entail(tiny, labels=("neutral", "contradiction", "entailment")).task
    assert isinstance(task, ZeroShotClassification)
    assert (task.entailment, task.contradiction) == (2, 1)


# --- batches ----------------------------------------------------------------------------------------------------------


def test_labels_of_many_texts_share_a_batch(tiny: Callable[..., Path]) -> None:
    pipe = entail(tiny)
    sizes: list[int] = []
    hook = pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        pipe([f"a film {i}" for i in range(20)])
    finally:
        hook.remove()
    assert sum(sizes) == 20 * len(LABELS)
    assert len(sizes) <= 2


def test_texts_times_labels_are_encoded_in_bounded_parts(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many labels there are, no more than a part of the pairs is in memory at a time."""
    pipe = entail(tiny, labels=NLI)
    texts = [f"a film {i}" for i in range(64)]
    whole = [as_dict(p) for p in pipe(texts)]
    held: list[int] = []
    walk = sys.modules["warmstart.engine.predict"]  # the package's own name for it is the function
    run_features = walk.run_features

    def counted(task: Any, runtime: Any, features: Any, *, max_tokens: int) -> Any:
        held.append(sum(feature.length for feature in features))
        return run_features(task, runtime, features, max_tokens=max_tokens)

    monkeypatch.setattr(walk, "run_features", counted)
    monkeypatch.setattr(walk, "PART_TOKENS", 500)
    parts = [as_dict(p) for p in pipe(texts)]
    assert [p["labels"] for p in parts] == [p["labels"] for p in whole]
    assert len(held) > 5 and max(held) < 500 + 4 * 64


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_cosines_are_those_of_sentence_transformers(encoder: Path) -> None:
    """Two hundred real texts and twelve labels, with the real encoder."""
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    import sentence_transformers

    with (DATA / "intents" / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 0, 15_000, 75)]
    texts, labels = [row["text"] for row in rows], sorted({row["label"].replace("_", " ") for row in rows})[:12]
    assert (len(texts), len(labels)) == (200, 12)
    ours = ws.load(encoder, task=TASK, options={"labels": labels}, device="cpu")(texts)
    level = logging.getLogger("sentence_transformers").level
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    try:
        model = sentence_transformers.SentenceTransformer(str(encoder), device="cpu", local_files_only=True)
        theirs = model.encode(texts, show_progress_bar=False) @ model.encode(labels, show_progress_bar=False).T
    finally:
        logging.getLogger("sentence_transformers").setLevel(level)
    for prediction, cosines in zip(ours, theirs, strict=True):
        found = dict(zip(prediction.labels, prediction.scores, strict=True))
        np.testing.assert_allclose([found[label] for label in labels], cosines, atol=1e-5)
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)


def test_labels_are_embedded_once(tiny: Callable[..., Path]) -> None:
    pipe = embed(tiny("bert", "base"))
    assert isinstance(pipe.task, ZeroShotByEmbedding)
    assert set(pipe.task.vectors) == set(LABELS)
    seen: list[int] = []
    hook = pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        pipe(["a film", "bad"])
        assert sum(seen) == 2
        pipe({"text": "a film", "labels": ["travel", "new", "newer"]})  # the row's own, but for the one that is known
        assert sum(seen) == 2 + 1 + 2
    finally:
        hook.remove()


def test_labels_of_rows_are_embedded_once_for_all_rows(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows name them, in however many windows and calls; what is kept is bounded, and changes nothing."""
    labels = [
        f"good {word}" for word in ("film", "cast", "plot", "story", "fun", "sad", "great", "warm", "bad", "dull")
    ]
    rows = [{"text": f"film {i}", "labels": labels[i % 3 :] + labels[: i % 3]} for i in range(1000)]
    pipe = embed(tiny("bert", "base"))
    seen: list[int] = []
    hook = pipe.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        first = pipe(rows)  # in three windows
        assert sum(seen) == 1000 + 10
        again = pipe({"text": "film 7", "labels": [*labels, "new"]})
        assert sum(seen) == 1000 + 10 + 2
        monkeypatch.setattr(pipe.task.recent, "_most", 4)  # type: ignore[attr-defined]
        bounded = pipe(rows[:64])
        assert sum(seen) == 1000 + 10 + 2 + 64  # known when the rows were encoded
        pipe({"text": "a", "labels": ["x"]})  # now all but the last four are forgotten
        assert sum(seen) == 1000 + 10 + 2 + 64 + 2
        dropped = pipe(rows[:64])
        assert 64 < sum(seen) - (1000 + 10 + 2 + 64 + 2) <= 64 + 10
    finally:
        hook.remove()
    alone = embed(tiny("bert", "base"))(rows[7])
    for found in (first[7], bounded[7], dropped[7]):
        assert (found.tokens, found.truncated) == (alone.tokens, alone.truncated)
        by_label = dict(zip(found.labels, found.scores, strict=True))
        np.testing.assert_allclose([by_label[label] for label in alone.labels], alone.scores, atol=1e-6)
    assert again.tokens == alone.tokens and len(again.labels) == 11


def test_a_label_is_the_same_embedded_before_or_with_a_row(tiny: Callable[..., Path]) -> None:
    folder = tiny("roberta", "base")
    before = embed(folder)("a good film")
    after = ws.load(folder, task=TASK, device="cpu")({"text": "a good film", "labels": list(LABELS)})
    assert before.labels == after.labels
    np.testing.assert_allclose(before.scores, after.scores, atol=1e-6)


def test_an_encoder_not_made_for_it_is_said(
    tiny: Callable[..., Path], encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        embed(tiny("bert", "base"))
    assert any("not made for sentence embeddings" in record.message for record in caplog.records)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "warmstart"):
        embed(encoder)
    assert not caplog.records


# --- where labels come from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["a, b,c", ["a", "b", "c"], ("a", " b ", "c"), np.array(["a", "b", "c"])], ids=repr)
def test_ways_to_name_labels(tiny: Callable[..., Path], labels: Any) -> None:
    assert entail(tiny, labels=NLI).task.labels == LABELS  # type: ignore[attr-defined]
    pipe = ws.load(tiny("bert", labels=NLI), task=TASK, options={"labels": labels}, device="cpu")
    assert set(pipe("film").labels) == {"a", "b", "c"}
    named = entail(tiny)({"text": "film", "labels": labels})  # a row's own win
    assert set(named.labels) == {"a", "b", "c"}
    assert entail(tiny)({"text": "film", "labels": "only"}).labels == ("only",)


@pytest.mark.parametrize("labels", [["a", "a"], ["a", ""], ["a", 3], {"a": 1}, 7, [], ",", b"a,b"], ids=repr)
def test_what_names_no_labels_is_refused_at_its_place(tiny: Callable[..., Path], labels: Any) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError) as option:
        ws.load(tiny("bert", labels=NLI), task=TASK, options={"labels": labels}, device="cpu")
    assert option.value.code == "option-value" and "labels" in option.value.fix
    with pytest.raises(DataError) as row:
        entail(tiny)([{"text": "a"}, {"text": "b", "labels": labels}])
    assert (row.value.code, row.value.where.row, row.value.where.field) == ("field-not-labels", 1, "labels")
    assert time.monotonic() - started < 5


def test_no_labels_at_all(tiny: Callable[..., Path]) -> None:
    for folder in (tiny("bert", labels=NLI), tiny("bert", "base")):
        pipe = ws.load(folder, task=TASK, device="cpu")
        with pytest.raises(UsageError) as caught:
            pipe(["a film"])
        assert caught.value.code == "labels-missing" and caught.value.where.row == 0
        assert pipe({"text": "a film", "labels": ["a", "b"]}).labels  # the healthy twin


@pytest.mark.parametrize("template", ["This is sports.", "{} or {}", ""])
def test_a_template_has_one_place_for_the_label(tiny: Callable[..., Path], template: str) -> None:
    with pytest.raises(UsageError) as caught:
        entail(tiny, hypothesis_template=template)
    assert caught.value.code == "option-value" and "hypothesis_template" in caught.value.fix
    assert entail(tiny, hypothesis_template="{} {x}")("a").labels  # other braces are text


def test_a_classifier_without_entailment_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        embed(tiny("bert"))
    assert caught.value.code == "entailment-missing" and caught.value.value == ["NEGATIVE", "POSITIVE"]


@pytest.mark.parametrize("head", ["classification", "base"])
def test_a_fresh_head_is_no_way_to_name_labels(tiny: Callable[..., Path], head: str) -> None:
    with pytest.raises(UsageError) as caught:
        ws.load(tiny("bert", head, NLI), task=TASK, labels=["a", "b"])
    assert caught.value.code == "task-has-no-labels" and "options" in caught.value.fix


# --- long texts -------------------------------------------------------------------------------------------------------


def test_windows_read_all_of_a_text_and_the_hypothesis_whole(tiny: Callable[..., Path]) -> None:
    pipe = entail(tiny, long_text="windows", stride=8, max_length=48)
    row = Row({"text": "the cast is great but the story never begins " * 12})
    features = list(pipe.task.encode([row]))
    rust = pipe.task.tokenizer.rust
    for choice, label in enumerate(LABELS):
        hypothesis = rust.encode(f"This example is {label}.", add_special_tokens=False).ids
        own = [f for f in features if f.meta["choice"] == choice]
        assert len(own) > 3
        for feature in own:
            ids, types = feature.inputs["input_ids"], feature.inputs["token_type_ids"]
            assert ids[types == 1][:-1].tolist() == hypothesis
    text = rust.encode(row["text"], add_special_tokens=False).ids
    first = features[0].inputs["input_ids"][features[0].inputs["token_type_ids"] == 0][1:-1].tolist()
    last = [f for f in features if f.meta["choice"] == 0][-1]
    assert text[: len(first)] == first
    assert text[-3:] == last.inputs["input_ids"][last.inputs["token_type_ids"] == 0][-4:-1].tolist()
    assert not pipe(row).truncated
    assert entail(tiny, max_length=48)(row).truncated


def test_a_label_that_leaves_no_room_is_an_error_of_its_row(tiny: Callable[..., Path]) -> None:
    rows = [{"text": "a film"}, {"text": "the story never begins " * 40, "labels": ["x " * 200, "good"]}]
    for options in ({}, {"long_text": "windows", "stride": 8}):
        with pytest.raises(DataError) as caught:
            entail(tiny, **options)(rows)
        assert (caught.value.code, caught.value.where.row) == ("window-too-small", 1)


# --- judging ----------------------------------------------------------------------------------------------------------


def answered(monkeypatch: pytest.MonkeyPatch, pipe: ws.Pipeline, logits: list[float]) -> None:
    """Let the runtime answer with these entailment logits, label by label, whatever the text."""

    def run(self: Any, batch: Batch) -> dict[str, Array]:
        wanted = [[0.0, 0.0, logits[feature.meta["choice"]]] for feature in batch.features]
        return {"logits": np.array(wanted, dtype=np.float32)}

    monkeypatch.setattr(type(pipe.runtime), "run", run)


def test_accuracy_loss_and_scope(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = entail(tiny, out_of_scope="oos")
    answered(monkeypatch, pipe, [2.0, 0.0, 0.0, 0.0])
    rows = [{"text": "a", "label": label} for label in ("good news", " Good News", "travel", "oos")]
    result = ws.evaluate(pipe, rows)
    p = np.exp([2.0, 0, 0, 0]) / np.exp([2.0, 0, 0, 0]).sum()
    assert result.per_example["correct"].tolist() == [True, True, False, False]
    assert result.per_example["in_scope"].tolist() == [True, True, True, False]
    np.testing.assert_allclose(result.per_example["loss"], [-np.log(p[0])] * 2 + [-np.log(p[2]), -np.log(p).mean()])
    assert result.metrics["accuracy"].value == pytest.approx(2 / 3)  # of the rows in scope
    assert result.metrics["in_scope_auroc"].value == 0.5  # every row has the same best score
    assert "in_scope_auroc" not in ws.evaluate(pipe, rows[:3]).metrics


def test_each_label_on_its_own_is_judged_so(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = entail(tiny, multi_label=True)
    answered(monkeypatch, pipe, [2.0, -1.0, 0.0, 0.0])
    [loss] = ws.evaluate(pipe, [{"text": "a", "label": "bad news"}]).per_example["loss"]
    p = 1 / (1 + np.exp([-2.0, 1.0, 0.0, 0.0]))
    assert loss == pytest.approx(-np.log([1 - p[0], p[1], 0.5, 0.5]).mean())


def test_the_loss_of_cosines_is_the_cross_entropy_at_scale_twenty(tiny: Callable[..., Path]) -> None:
    pipe = embed(tiny("bert", "base"))
    result = ws.evaluate(pipe, [{"text": "a good film", "label": "travel"}])
    found = dict(zip(result.predictions[0].labels, result.predictions[0].scores, strict=True))
    logits = torch.tensor([[20 * found[label] for label in LABELS]], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([LABELS.index("travel")])).item()
    assert math.isclose(result.loss, expected, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("label", "code"), [("oos", "label-unknown"), (None, "field-missing"), (["travel"], "label-unusable")]
)
def test_a_label_that_is_no_candidate_is_an_error_of_its_row(tiny: Callable[..., Path], label: Any, code: str) -> None:
    rows = [{"text": "a", "label": "travel"}, {"text": "b", "label": label}]
    for pipe in (entail(tiny), embed(tiny("bert", "base"))):
        with pytest.raises(DataError) as caught:
            ws.evaluate(pipe, rows)
        assert (caught.value.code, caught.value.where.row, caught.value.where.field) == (code, 1, "label")


def test_a_classifier_trained_on_entailment_is_asked(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Train on pairs, load for this task: the way in `docs/tasks/`."""
    rows = [
        {"premise": f"a {word} film", "hypothesis": f"This example is {other}.", "label": said}
        for word, other, said in (
            ("good", "good", "entailment"), ("bad", "bad", "entailment"),
            ("good", "bad", "contradiction"), ("bad", "good", "contradiction"),
        )
    ]  # fmt: skip
    config = ws.TrainConfig(
        epochs=60, batch_size=4, learning_rate=5e-3, warmup=0.0, schedule="constant", device="cpu", weight_decay=0.0
    )
    folder = copy_of(tiny("bert", "base"), tmp_path / "c")
    edit_json(folder / "config.json", {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    run = ws.train(folder, rows, output=tmp_path / "run", task="text-classification", config=config)
    pipe = ws.load(run.path, task=TASK, options={"labels": "good,bad"}, device="cpu")
    assert [p.labels[0] for p in pipe(["a good film", "a bad film"])] == ["good", "bad"]
