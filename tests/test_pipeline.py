"""What a person holds: how it is called, and that it gives what the textbook's hand-written forward gives."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import warmstart as ws
from warmstart.errors import DataError
from warmstart.tasks import as_dict

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
LABELS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
TEXTS = [
    "I love LangChain!",
    "",
    " leading and trailing space ",
    "naïve café, ¿qué?  élan — “quoted” …",
    "日本語の文 and 中文 and 한국어",
    "العربية \u202eright to left\u202c",
    "tabs\tand\nnew lines\r\n",
    "\U0001f600 emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 family",
    "UPPER lower MiXeD 0123456789 3.14 1e-9",
    "don't won't it's they're — contractions",
    "http://example.com/a?b=c&d=e#f <b>html</b> {json: [1]} $x^2$",
    "a" * 150,
    "word " * 700,  # over the limit
    "\x00control\x07characters\x1b[0m",
    "e\u0301 combining \u0301\u0301",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def real(encoder: Path) -> ws.Pipeline:
    """The real MiniLM with a fresh head: for parity any head will do."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return ws.load(encoder, task="text-classification", labels=LABELS, device="cpu")


@pytest.fixture(scope="module")
def small(tiny: Callable[..., Path]) -> ws.Pipeline:
    return ws.load(tiny("bert"), device="cpu")


def textbook(pipe: ws.Pipeline, texts: list[Any]) -> list[tuple[str, dict[str, float]]]:
    """The first hour's code, unchanged, on the objects that a pipeline hands out."""
    found: list[tuple[str, dict[str, float]]] = []
    for start in range(0, len(texts), 8):
        batch = texts[start : start + 8]
        parts = [list(part) for part in zip(*batch, strict=True)] if isinstance(batch[0], tuple) else [batch]
        inputs = pipe.tokenizer(*parts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = pipe.model(**inputs).logits
        scores = torch.softmax(logits, dim=-1)
        for row, best in zip(scores.tolist(), logits.argmax(dim=-1).tolist(), strict=True):
            names = [pipe.model.config.id2label[i] for i in range(len(row))]
            found.append((names[best], dict(zip(names, row, strict=True))))
    return found


def agree(pipe: ws.Pipeline, texts: list[Any]) -> None:
    texts = sorted(
        texts, key=lambda text: len("".join(text))
    )  # little padding for the textbook: it saves half a minute
    for text, prediction, (label, scores) in zip(texts, pipe(texts), textbook(pipe, texts), strict=True):
        assert prediction.label == label, text
        assert prediction.scores == pytest.approx(scores, abs=1e-5), text
        assert prediction.score == max(prediction.scores.values())
        assert list(prediction.scores) == list(scores)


# --- parity with the textbook -----------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_textbook(real: ws.Pipeline) -> None:
    agree(real, TEXTS)


def test_predictions_for_pairs_are_those_of_the_textbook(real: ws.Pipeline) -> None:
    agree(real, [pair for pair in itertools.pairwise(TEXTS) if pair[1]] + [("a " * 400, "b")])


def test_the_textbook_does_not_disturb_the_pipeline_nor_the_other_way(small: ws.Pipeline) -> None:
    before = [as_dict(prediction) for prediction in small(TEXTS)]
    small.tokenizer(TEXTS, padding="max_length", truncation=True, max_length=8)
    assert [as_dict(prediction) for prediction in small(TEXTS)] == before
    plain = small.tokenizer("one two three")["input_ids"]
    small(["x " * 900])
    assert small.tokenizer("one two three")["input_ids"] == plain


def test_spelled_out_special_tokens_are_the_exception_and_said(real: ws.Pipeline) -> None:
    prediction = real("what is [SEP] here?")
    assert prediction.flags == ("special-tokens-as-text",)
    assert prediction.scores != pytest.approx(textbook(real, ["what is [SEP] here?"])[0][1], abs=1e-5)


def _real_texts() -> list[Any]:
    """A thousand texts from five sources; none of them a test part."""
    texts: list[Any] = []
    for name, key, count in (("reviews", "text", 300), ("intents", "text", 300)):
        with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
            texts += [json.loads(line)[key] for line in itertools.islice(lines, count)]
    with (DATA / "questions" / "train.csv").open(encoding="utf-8", newline="") as lines:
        texts += [row["text"] for row in itertools.islice(csv.DictReader(lines), 250)]
    with (DATA / "banking" / "train.csv").open(encoding="utf-8", newline="") as lines:
        texts += [row["text"] for row in itertools.islice(csv.DictReader(lines), 150)]
    return texts


@pytest.mark.real_data
def test_predictions_are_those_of_the_textbook_on_a_thousand_real_texts(real: ws.Pipeline) -> None:
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    texts = _real_texts()
    assert len(texts) == 1000
    agree(real, texts)


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "gpt2"])
def test_every_family_is_the_textbooks(tiny: Callable[..., Path], family: str) -> None:
    pipe = ws.load(tiny(family), device="cpu")
    model_inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if family == "bert" else [])
    pipe.tokenizer.model_input_names = model_inputs
    agree(pipe, [text for text in TEXTS if text])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (("a", "b", "c"), "single_label_classification"),
        (("a", "b", "c"), "multi_label_classification"),
        (("score",), "regression"),
    ],
)
def test_scores_are_those_of_transformers_own_pipeline(
    tiny: Callable[..., Path], tmp_path: Path, labels: tuple[str, ...], problem: str
) -> None:
    from support.damage import copy_of, edit_json

    folder = copy_of(tiny("bert", labels=labels), tmp_path / "model")
    edit_json(folder / "config.json", {"problem_type": problem})
    ours = ws.load(folder, device="cpu")
    theirs = transformers.pipeline(
        "text-classification", model=ours.model, tokenizer=ours.tokenizer, top_k=None, device=-1
    )
    for text, scores in zip(TEXTS, theirs(TEXTS, truncation=True), strict=True):
        expected = {entry["label"]: entry["score"] for entry in scores}
        assert ours(text).scores == pytest.approx(expected, abs=1e-5)


# --- how it is called -------------------------------------------------------------------------------------------------


def test_what_goes_in_decides_what_comes_out(small: ws.Pipeline) -> None:
    one = small("a film")
    assert dataclasses.is_dataclass(one)
    assert small(["a film"]) == [one]
    assert small({"text": "a film"}) == one
    assert small({"text": "a film", "label": "POSITIVE", "id": 7}) == one
    pair = small(("a film", "good"))
    assert small([("a film", "good")]) == [pair] != [one]
    assert small({"text": "a film", "text_pair": "good"}) == pair
    stream = small(iter(["a film", ("a film", "good"), {"text": "a film"}]))
    assert iter(stream) is stream
    assert [p.label for p in stream] == [one.label, pair.label, one.label]
    assert small([]) == []
    assert list(small(text for text in ())) == []
    assert list(small(iter(["a film"]))) == [one]


def test_a_stream_is_lazy(small: ws.Pipeline) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "a film"

    stream = small(endless())
    assert taken == 0
    assert next(stream).label
    assert 1 <= taken <= 64


def test_what_holds_no_rows_is_refused_at_the_call(small: ws.Pipeline) -> None:
    for wrong in (3, None, b"bytes", Path("rows.jsonl")):
        with pytest.raises(DataError) as caught:
            small(wrong)
        assert caught.value.code == "data-not-rows"
    with pytest.raises(DataError) as caught:
        small(("a", "b", "c"))
    assert caught.value.code == "row-not-object"


def _cut(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "were cut" in record.getMessage()]


@pytest.mark.parametrize("how", ["one", "row", "pair", "list", "stream", "left early", "bad row later"])
def test_cutting_is_always_said(small: ws.Pipeline, caplog: pytest.LogCaptureFixture, how: str) -> None:
    long = "film " * 300
    with caplog.at_level(logging.WARNING, "warmstart"):
        if how == "one":
            small(long)
        elif how == "row":
            small({"text": long})
        elif how == "pair":
            small((long, long))
        elif how == "list":
            small([long])
        elif how == "stream":
            list(small(iter([long])))
        elif how == "left early":
            stream = small(iter([long] * 3))
            next(stream)
            stream.close()
        else:
            with pytest.raises(DataError):
                list(small(iter([long] * 64 + [3])))
    [said] = _cut(caplog)
    count = "64 of 64" if how == "bad row later" else "1 of 1"
    assert said.startswith(f"{count} texts were longer than 128 tokens")


def test_nothing_is_said_where_nothing_is_cut(small: ws.Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "warmstart"):
        small(["a film", "b"])
    assert caplog.records == []


def test_a_pipeline_is_frozen_and_shows_what_it_is(small: ws.Pipeline) -> None:
    assert repr(small).startswith("Pipeline(")
    assert "task='text-classification', device='cpu'" in repr(small)
    assert small.device == "cpu"
    with pytest.raises(dataclasses.FrozenInstanceError):
        small.task = None  # type: ignore[misc,assignment]


def test_what_it_hands_out_are_transformers_own_objects(small: ws.Pipeline) -> None:
    assert isinstance(small.model, transformers.BertForSequenceClassification)
    assert isinstance(small.tokenizer, transformers.PreTrainedTokenizerBase)
    assert not small.model.training
    assert small.model.dtype == torch.float32
