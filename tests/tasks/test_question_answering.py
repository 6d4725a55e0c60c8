"""Question answering against a direct forward of transformers and SQuAD's post-processing, written here once more."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import warmstart as ws
from support.models import tiny_checkpoint
from warmstart.batching import collate
from warmstart.engine import torch_runtime
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import DataError, UsageError
from warmstart.rows import Row, read
from warmstart.tasks import as_dict, from_dict
from warmstart.tasks.answer_spans import best_spans
from warmstart.tasks.question_answering import Answer, QuestionAnswering

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ANSWERS = DATA / "answers" / "xquad.en.json"
needs_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here"),
]
HEAD = "question-answering"


@pytest.fixture(scope="module")
def real_rows() -> list[Row]:
    return list(read(ANSWERS, fields=QuestionAnswering.fields, targets=True))


@pytest.fixture(scope="module")
def pipe(tiny_root: Path) -> ws.Pipeline:
    return ws.load(tiny_checkpoint(tiny_root, "bert", HEAD), device="cpu")


@pytest.fixture(scope="module")
def mini(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real encoder with a random head, as transformers saves it."""
    folder = tmp_path_factory.mktemp("mini") / "checkpoint"
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        AutoModelForQuestionAnswering.from_pretrained(encoder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


# --- the reference ----------------------------------------------------------------------------------------------------


def reference(
    folder: Path, rows: list[Row], *, max_length: int, stride: int, longest: int, threshold: float | None
) -> list[tuple[str, int, int, float]]:
    """Answer, start, end and probability of each row: SQuAD's post-processing (`run_qa.py` of transformers), of every
    start and end and not of the best twenty. Spans that begin or end in a token of space, which no WordPiece is, are
    left out, and space at their ends, which SQuAD's metrics ignore."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        context = row["context"]
        encoded = tokenizer(
            row["question"],
            context,
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=model.config.model_type == "bert",
            padding=True,
            return_tensors="pt",
        )
        offsets = encoded.pop("offset_mapping").tolist()
        encoded.pop("overflow_to_sample_mapping")
        with torch.inference_mode():
            outputs = model(**encoded)
        spans: dict[tuple[int, int], float] = {}
        null = math.inf
        for window, (start_logits, end_logits) in enumerate(
            zip(outputs.start_logits.double().tolist(), outputs.end_logits.double().tolist(), strict=True)
        ):
            null = min(null, start_logits[0] + end_logits[0])
            bounds = [
                (begin, end) if sequence == 1 and context[begin:end].strip() else None
                for sequence, (begin, end) in zip(encoded.sequence_ids(window), offsets[window], strict=True)
            ]
            for first, begins in enumerate(bounds):
                for last in range(first, min(first + longest, len(bounds))):
                    ends = bounds[last]
                    if begins is None or ends is None:
                        continue
                    text = context[begins[0] : ends[1]]
                    at = begins[0] + len(text) - len(text.lstrip()), ends[1] - (len(text) - len(text.rstrip()))
                    spans[at] = max(spans.get(at, -math.inf), start_logits[first] + end_logits[last])
        best = max(spans, key=spans.__getitem__)
        total = math.exp(null) + sum(map(math.exp, spans.values()))
        if threshold is not None and null - spans[best] > threshold:
            found.append(("", 0, 0, math.exp(null) / total))
        else:
            found.append((context[best[0] : best[1]], *best, math.exp(spans[best]) / total))
    return found


def agree(
    folder: Path, rows: list[Row], *, max_length: int, stride: int, threshold: float | None = None, longest: int = 5
) -> int:
    """Assert that ours equals the reference on all rows; returns how many were found to have no answer."""
    odds = 1.0 if threshold is None else 1 / (1 + math.exp(-threshold))
    options = {"max_length": max_length, "stride": stride, "no_answer_threshold": odds}
    options |= {} if longest == 30 else {"max_answer_tokens": longest}
    ours = list(ws.load(folder, task=HEAD, options=options, device="cpu").predict_rows(rows))
    theirs = reference(folder, rows, max_length=max_length, stride=stride, longest=longest, threshold=threshold)
    for mine, (answer, start, end, score) in zip(ours, theirs, strict=True):
        assert (mine.answer, mine.start, mine.end) == (answer, start, end)
        assert mine.score == pytest.approx(score, rel=1e-3)
    return sum(not mine.answer for mine in ours)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
class TestParity:
    pytestmark = needs_data

    def test_of_200_real_questions(self, family: str, tiny_root: Path, real_rows: list[Row]) -> None:
        """Character by character, as tiny tokenizers read them, these contexts take two to eight windows."""
        rows = sorted(real_rows, key=lambda row: len(row["context"]))[:200]
        rows = [Row(row | {"question": row["question"][:60]}) for row in rows]  # a window needs room beside it
        assert agree(tiny_checkpoint(tiny_root, family, HEAD), rows, max_length=128, stride=24) == 0

    def test_of_no_answer(self, family: str, tiny_root: Path, real_rows: list[Row]) -> None:
        """At the median of the model's own differences half of the rows have an answer, and half have none."""
        rows = [Row(row | {"question": row["question"][:40]}) for row in real_rows[:400:20]]
        folder = tiny_checkpoint(tiny_root, family, HEAD)
        options = {"max_length": 96, "stride": 16, "max_answer_tokens": 5}
        pipe = ws.load(folder, options=options, device="cpu")
        found = [best_spans(pipe(row).windows, longest=5, count=1).none_or_best for row in rows]
        share = float(np.median(found))
        threshold = math.log(share / (1 - share))
        assert agree(folder, rows, max_length=96, stride=16, threshold=threshold) == len(rows) / 2


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_parity_of_answers_as_long_as_they_may_be(tiny_root: Path, real_rows: list[Row]) -> None:
    folder = tiny_checkpoint(tiny_root, "distilbert", HEAD)
    assert ws.load(folder, device="cpu").task.max_answer_tokens == 30  # type: ignore[attr-defined]
    rows = [Row(row | {"question": row["question"][:60]}) for row in real_rows[::20]]
    assert len(rows) > 50
    agree(folder, rows, max_length=128, stride=40, longest=30)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_parity_of_the_real_encoder(mini: Path, real_rows: list[Row]) -> None:
    agree(mini, real_rows[::30], max_length=96, stride=32, longest=30)


# --- long documents ---------------------------------------------------------------------------------------------------


class Lighthouse(torch.nn.Module):
    """Says with certainty that an answer begins at one token and ends at another."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
        logits = [10.0 * (input_ids == token) - 3.0 * attention_mask for token in (self.first, self.last)]
        return type("Outputs", (), {"start_logits": logits[0], "end_logits": logits[1]})


PLANTED = "Honolulu is the capital of Hawaii near Zimbabwe"  # one token a word, the first and last found nowhere else


@pytest.fixture(scope="module")
def lighthouse(mini: Path) -> ws.Pipeline:
    """The real tokenizer and every step of the way from rows to predictions, with a model whose answer is known."""
    real = ws.load(mini, task=HEAD, options={"top_k": 12}, device="cpu")
    ids = [real.task.tokenizer.rust.token_to_id(word) for word in ("honolulu", "zimbabwe")]
    assert None not in ids
    model = Lighthouse(*ids)
    return dataclasses.replace(real, model=model, runtime=torch_runtime(model, real.task, device="cpu"))


@pytest.fixture(scope="module")
def document() -> str:
    """20,000 real words."""
    texts = [row["text"] for row in read(DATA / "reviews" / "train.jsonl", fields=ws.load("starter").task.fields)]
    return " ".join(" ".join(texts).split()[:20_000])


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
class TestLongDocument:
    QUESTION = "What is the capital of the islands?"

    def places(self, pipe: ws.Pipeline, document: str) -> list[int]:
        """Where to plant: the start, the end, and about the first and last token of windows; spaces, or the ends."""
        features = list(pipe.task.encode([Row({"question": self.QUESTION, "context": document})]))
        assert len(features) > 50
        wanted = [0, len(document)]
        for feature in (features[1], features[len(features) // 2]):
            spans = feature.meta["spans"][feature.meta["spans"][:, 0] >= 0]
            wanted += [int(spans[0, 0]), int(spans[-1, 1])]
        return sorted({document.rfind(" ", 0, at) if 0 < at < len(document) else at for at in wanted})

    def planted(self, document: str, at: int) -> tuple[str, int]:
        """The document with the answer after character `at`, and where it then stands."""
        lead = " " if at else ""
        return f"{document[:at]}{lead}{PLANTED} {document[at:].strip()}".strip(), at + len(lead)

    def test_an_answer_is_found_wherever_it_stands(self, lighthouse: ws.Pipeline, document: str) -> None:
        places = self.places(lighthouse, document)
        assert len(places) == 6
        for at in places:
            # Shifted by half of its words, so that it begins at a seam, lies across it, and ends there.
            for shift in {0, *(-k for k in (4,))} if 0 < at < len(document) else {0}:
                near = at
                for _ in range(-shift):
                    near = document.rfind(" ", 0, near)
                context, start = self.planted(document, near)
                found = lighthouse({"question": self.QUESTION, "context": context})
                assert (found.answer, found.start, found.end) == (PLANTED, start, start + len(PLANTED)), near
                assert (found.score > 0.99, found.truncated) == (True, False)

    def test_all_at_once_are_the_best_of_all(self, lighthouse: ws.Pipeline, document: str) -> None:
        context, starts = document, []
        for at in reversed(self.places(lighthouse, document)):
            context, start = self.planted(context, at)
            starts.append(start)
        found = lighthouse({"question": self.QUESTION, "context": context})
        spans = [as_dict(found), *found.alternatives]
        real = [span for span in spans if span["answer"] == PLANTED]
        assert len(real) == len(starts)
        assert [span["start"] for span in real] == [i for i in range(len(context)) if context.startswith(PLANTED, i)]
        assert all(context[span["start"] : span["end"]] == span["answer"] for span in spans)

    def test_without_it_there_is_no_answer(self, lighthouse: ws.Pipeline, document: str) -> None:
        task = dataclasses.replace(lighthouse.task, no_answer_threshold=0.4)  # type: ignore[type-var]
        plain = dataclasses.replace(lighthouse, task=task, runtime=torch_runtime(lighthouse.model, task, device="cpu"))
        found = plain({"question": self.QUESTION, "context": document})
        assert (found.answer, found.start, found.end) == ("", 0, 0)


def test_half_a_megabyte_is_answered_in_bounded_time(lighthouse: ws.Pipeline) -> None:
    context = "it rains in the valley and snows on the hills " * 10_000 + PLANTED
    started = time.process_time()
    found = lighthouse({"question": "where?", "context": context})
    assert context[found.start : found.end] == PLANTED
    assert time.process_time() - started < 60


# --- windows, options, odd texts --------------------------------------------------------------------------------------


def test_every_token_of_the_context_is_in_a_window(pipe: ws.Pipeline) -> None:
    context = " ".join(f"word{i}" for i in range(300))
    features = list(pipe.task.encode([Row({"question": "is it fun?", "context": context})]))
    seen = {tuple(span) for feature in features for span in feature.meta["spans"].tolist()} - {(-1, -1)}
    covered = np.zeros(len(context), bool)
    for start, end in seen:
        covered[start:end] = True
    assert all(covered[i] for i, character in enumerate(context) if character != " ")
    assert len(features) > 5
    assert all(feature.length <= pipe.task.tokenizer.limit for feature in features)


def test_the_answer_is_the_piece_of_the_context_between_its_offsets(tiny_root: Path) -> None:
    for family in ("bert", "roberta", "gpt2"):
        pipe = ws.load(tiny_checkpoint(tiny_root, family, HEAD), options={"top_k": 50}, device="cpu")
        context = "Ünïcode\u3000 and  two spaces,\n\ttabs \U0001f600\u200d z\u0351\u0317 ,a  "
        found = pipe({"question": "is it fun?", "context": context})
        spans = [as_dict(found), *found.alternatives]
        assert len(spans) == 50
        assert len({(span["start"], span["end"]) for span in spans}) == 50
        for span in spans:
            assert span["answer"] == context[span["start"] : span["end"]] == span["answer"].strip() != ""
        scores = [span["score"] for span in spans]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1 + 1e-9


def test_the_best_n_begin_as_the_best_one(pipe: ws.Pipeline, tiny_root: Path) -> None:
    row = {"question": "is it fun?", "context": "The cast is great but the story never begins?"}
    many = ws.load(tiny_checkpoint(tiny_root, "bert", HEAD), options={"top_k": 4}, device="cpu")(row)
    one = pipe(row)
    assert dataclasses.replace(many, alternatives=()) == one
    assert len(many.alternatives) == 3
    assert from_dict(Answer, json.loads(json.dumps(as_dict(many)))) == many


def test_an_answer_has_at_most_so_many_tokens(tiny_root: Path) -> None:
    row = {"question": "is it fun?", "context": "a b c d e f g h"}
    for longest in (1, 2, 3):
        options = {"max_answer_tokens": longest, "top_k": 100}
        found = ws.load(tiny_checkpoint(tiny_root, "bert", HEAD), options=options, device="cpu")(row)
        lengths = [len(span["answer"].split()) for span in (as_dict(found), *found.alternatives)]
        assert max(lengths) == longest
        assert len(lengths) == sum(8 - k for k in range(longest))


def test_no_answer_is_said_by_its_probability(tiny_root: Path) -> None:
    row = {"question": "is it fun?", "context": "The cast is great."}
    folder = tiny_checkpoint(tiny_root, "bert", HEAD)
    always = ws.load(folder, options={"no_answer_threshold": 0.0, "top_k": 2}, device="cpu")(row)
    never = ws.load(folder, options={"no_answer_threshold": 1.0, "top_k": 2}, device="cpu")(row)
    assert (always.answer, always.start, always.end) == ("", 0, 0)
    [best] = always.alternatives
    assert best == {name: as_dict(never)[name] for name in ("answer", "score", "start", "end")}
    # Between the two lies their share: a threshold on either side of it decides.
    share = always.score / (always.score + never.score)
    for threshold, empty in ((share - 1e-6, True), (share + 1e-6, False)):
        found = ws.load(folder, options={"no_answer_threshold": threshold}, device="cpu")(row)
        assert (found.answer == "") == empty


@pytest.mark.parametrize("row", [("", "a film"), ("is it?", ""), ("is it?", " \n"), ("", "")])
def test_an_empty_text_is_flagged(pipe: ws.Pipeline, row: tuple[str, str]) -> None:
    found = pipe(row)
    assert found.flags == ("empty-text",)
    if not row[1].strip():
        assert (found.answer, found.score, found.start, found.end) == ("", 1.0, 0, 0)


def test_lone_surrogates_do_not_reach_the_answer(tiny_root: Path) -> None:
    pipe = ws.load(tiny_checkpoint(tiny_root, "roberta", HEAD), options={"max_answer_tokens": 100}, device="cpu")
    context = "\udc80" * 4
    found = pipe(("is it?", context))
    assert found.answer == "\N{REPLACEMENT CHARACTER}" * (found.end - found.start) != ""
    assert found.flags == ("surrogates-replaced",)


def test_a_question_that_leaves_no_room_is_refused_with_its_place(pipe: ws.Pipeline) -> None:
    rows = [{"question": "is it?", "context": "a film"}, {"question": "why " * 200, "context": "a film"}]
    with pytest.raises(DataError) as caught:
        pipe(rows)
    assert (caught.value.code, caught.value.where.row) == ("window-too-small", 1)


def test_windows_overlap_by_a_quarter_of_a_short_limit(tiny_root: Path, mini: Path) -> None:
    folder = tiny_checkpoint(tiny_root, "bert", HEAD)
    assert [ws.load(folder, options={"max_length": n}, device="cpu").task.stride for n in (128, 40)] == [32, 10]  # type: ignore[attr-defined]
    assert ws.load(mini, task=HEAD, device="cpu").task.stride == 128  # type: ignore[attr-defined]


def test_labels_are_refused(pipe: ws.Pipeline) -> None:
    with pytest.raises(UsageError) as caught:
        pipe.task.with_labels(("a",))
    assert caught.value.code == "task-has-no-labels"


# --- training ---------------------------------------------------------------------------------------------------------


def labelled() -> list[Row]:
    context = "The cast is great but the story never begins?"
    answers = ("cast", "great but", "The cast is great but the story never begins?", "begins?")
    rows = [
        Row({"question": f"is {i}?", "context": context[: 45 - i], "answers": a}) for i, a in enumerate(answers[:2])
    ]
    return [*rows, *(Row({"question": "is it fun?", "context": context, "answers": [a]}) for a in answers[2:])]


def test_the_loss_is_transformers_own_where_nothing_is_padded(pipe: ws.Pipeline) -> None:
    for feature in pipe.task.encode(labelled(), train=True):
        batch = to_tensors(collate([feature], pipe.task.pads), "cpu")
        with torch.inference_mode():
            losses, _ = pipe.task.loss(pipe.task.forward(pipe.model, batch), batch)
            theirs = pipe.model(**batch.inputs, **batch.targets).loss
        assert losses.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_loss_does_not_depend_on_padding(pipe: ws.Pipeline) -> None:
    features = list(pipe.task.encode(labelled(), train=True))
    long = next(pipe.task.encode([Row({"question": "is it?", "context": "film " * 90, "answers": "film"})], train=True))

    def losses(*group: Any) -> list[float]:
        batch = to_tensors(collate(group, pipe.task.pads), "cpu")
        with torch.inference_mode():
            return list(pipe.task.loss(pipe.task.forward(pipe.model, batch), batch)[0].tolist())

    alone = [losses(feature)[0] for feature in features]
    padded = losses(*features, long)[:-1]
    assert alone == pytest.approx(padded, rel=1e-5)
    batch = to_tensors(collate([*features, long], pipe.task.pads), "cpu")
    with torch.inference_mode():  # transformers' own loss does: a padded batch has more tokens to be wrong about
        theirs = pipe.model(**batch.inputs, **batch.targets).loss
    assert abs(theirs.item() - np.mean([*alone, losses(long)[0]])) > 0.01


def test_windows_without_the_answer_point_at_the_first_token(pipe: ws.Pipeline) -> None:
    context = "bad " * 300 + "great"
    row = Row({"question": "is it fun?", "context": context, "answers": [{"text": "great", "answer_start": 1200}]})
    features = list(pipe.task.encode([row], train=True))
    targets = [(int(f.targets["start_positions"]), int(f.targets["end_positions"])) for f in features]
    assert len(features) > 2
    assert targets[:-1] == [(0, 0)] * (len(features) - 1)
    first, last = targets[-1]
    spelled = pipe.tokenizer.decode(features[-1].inputs["input_ids"][first : last + 1])
    assert spelled == "great"
    assert all(feature.meta["pieces"] == len(features) for feature in features)


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_targets_spell_the_answers_of_real_rows(mini: Path, real_rows: list[Row]) -> None:
    pipe = ws.load(mini, task=HEAD, options={"max_length": 128}, device="cpu")
    rows = real_rows[::4]
    held = 0
    for feature in pipe.task.encode(rows, train=True):
        first, last = int(feature.targets["start_positions"]), int(feature.targets["end_positions"])
        if (first, last) != (0, 0):
            held += 1
            spelled = pipe.tokenizer.decode(feature.inputs["input_ids"][first : last + 1])
            answer = rows[feature.row]["answers"][0]["text"]
            wanted = pipe.tokenizer.decode(pipe.tokenizer(answer, add_special_tokens=False)["input_ids"])
            # Of "20th" an answer may be "20": tokens are not cut.
            assert wanted.replace(" ", "") in spelled.replace(" ", "")
    assert held >= len(rows)


def test_one_answer_may_be_missing_at_training_time(pipe: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*labelled(), Row({"question": "why?", "context": "a film", "answers": []})]
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert pipe.task.learn(rows) is pipe.task
    assert "1 of 5 questions have no answer" in caplog.text
    caplog.clear()
    dataclasses.replace(pipe.task, no_answer_threshold=0.5).learn(rows)  # type: ignore[type-var]
    pipe.task.learn(labelled())
    assert caplog.text == ""
    *_, last = pipe.task.encode(rows, train=True)
    assert (int(last.targets["start_positions"]), last.meta["answer"]) == (0, "none")


def test_a_modernbert_head_is_trained_on_not_replaced(tiny_root: Path, tmp_path: Path) -> None:
    """Its head has another name than everybody else's."""
    folder = tiny_checkpoint(tiny_root, "modernbert", HEAD)
    config = ws.TrainConfig(max_steps=1, learning_rate=1e-12, weight_decay=0.0, device="cpu")
    run = ws.train(folder, labelled(), output=tmp_path / "run", config=config)
    before = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(run.pipeline.model.classifier.weight, before.classifier.weight)


def test_scores_are_those_of_the_metrics(pipe: ws.Pipeline) -> None:
    rows = labelled()
    predictions = [
        dataclasses.replace(prediction, answer=answer)
        for prediction, answer in zip(pipe(rows), ("the CAST!", "great", "", "begins"), strict=True)
    ]
    scores = pipe.task.score(predictions, rows)
    assert scores.per_example["correct"].tolist() == [True, False, False, True]
    assert scores.per_example["f1"].tolist() == pytest.approx([1, 2 / 3, 0, 1])
    assert scores.metrics["exact_match"].value == 0.5
    assert scores.metrics["f1"].value == pytest.approx((2 + 2 / 3) / 4)
    assert scores.primary == "f1"


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here")
def test_training_on_real_questions_lowers_the_loss(tiny_root: Path, tmp_path: Path, real_rows: list[Row]) -> None:
    """Of some questions to a tiny, random model: at least where no answer can begin."""
    rows = [row for row in sorted(real_rows, key=lambda row: len(row["context"]))[:40] if len(row["question"]) < 60]
    folder = tiny_checkpoint(tiny_root, "bert", HEAD)
    before = ws.evaluate(ws.load(folder, device="cpu"), rows)
    config = ws.TrainConfig(epochs=3, batch_size=4, learning_rate=3e-3, device="cpu")
    run = ws.train(folder, rows, output=tmp_path / "run", config=config)
    after = ws.evaluate(run.pipeline, rows)
    assert after.loss < 0.85 * before.loss


def test_a_share_that_is_held_out_has_contexts_of_its_own(tiny_root: Path, tmp_path: Path) -> None:
    """Else its questions would be asked about paragraphs that the model has learned."""
    rows = [Row({"question": f"is {i}?", "context": f"story {i // 4} is great", "answers": "great"}) for i in range(80)]
    config = ws.TrainConfig(max_steps=1, device="cpu")
    run = ws.train(
        tiny_checkpoint(tiny_root, "bert", HEAD), rows, output=tmp_path / "run", config=config, validation=0.3
    )
    assert run.validation is not None
    held = Counter(row["context"] for row in run.validation.examples)
    assert set(held.values()) == {4}
    assert 8 <= run.validation.rows <= 44


def test_batches_go_to_a_loop_of_ones_own(pipe: ws.Pipeline) -> None:
    batch = ws.batches(labelled(), pipe.task, max_tokens=None, batch_size=8)[0]
    with torch.inference_mode():
        assert math.isfinite(pipe.model(**batch).loss.item())
