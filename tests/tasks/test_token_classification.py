"""Token classification: against transformers' pipeline, in windows, in words as given, and in a very long document."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers

import warmstart as ws
from support.damage import copy_of
from support.models import tiny_checkpoint
from support.seqeval import micro
from warmstart.engine.predict import by_row
from warmstart.errors import DataError, UsageError
from warmstart.rows import Row, read
from warmstart.tasks import as_dict, from_dict
from warmstart.tasks.token_classification import IGNORED, TaggedText, TokenClassification

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_data = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data, the real labelled data, is not here"),
]
BIO = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = {"langchain": "B-PER", "transformers": "I-PER", "story": "B-LOC", "plot": "I-LOC"}


@pytest.fixture(scope="module")
def load(tiny_root: Path) -> Callable[..., ws.Pipeline]:
    def load(family: str, **options: Any) -> ws.Pipeline:
        return ws.load(tiny_checkpoint(tiny_root, family, "tokens", BIO), options=options, device="cpu")

    return load


@pytest.fixture(scope="module")
def sure(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tags the words of WORDS, and no others, whatever stands around them."""
    folder = copy_of(tiny_checkpoint(tiny_root, "bert", "tokens", BIO), tmp_path_factory.mktemp("sure") / "checkpoint")
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".output.dense" in name or "position_embeddings" in name or "token_type" in name:
                parameter.zero_()
        table = model.bert.embeddings.word_embeddings.weight.zero_()
        table[:, 0] = 1
        for word, tag in WORDS.items():
            table[tokenizer.convert_tokens_to_ids(word)] = torch.eye(32)[BIO.index(tag)]
        model.classifier.weight.copy_(3 * torch.eye(5, 32))
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    return folder


def found(prediction: TaggedText) -> list[tuple[str, int, int]]:
    return [(entity["entity_group"], entity["start"], entity["end"]) for entity in prediction.entities]


# --- transformers' pipeline -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    rows = read(DATA / "entities" / "test.conll", fields=TokenClassification.fields)
    texts = [" ".join(row["tokens"]) for row in rows]
    return random.Random(0).sample([text for text in texts if len(text) < 120], 204)


def reference(pipe: ws.Pipeline, texts: list[str], strategy: str) -> list[list[tuple[str, int, int, float]]]:
    """What transformers finds, its places without the space that some tokenizers count to a word."""
    theirs = transformers.pipeline(
        "token-classification", model=pipe.model, tokenizer=pipe.tokenizer, aggregation_strategy=strategy, device="cpu"
    )
    trimmed = []
    for text, entities in zip(texts, theirs(texts), strict=True):
        places = [(e, text[e["start"] : e["end"]]) for e in entities]
        trimmed.append(
            [
                (
                    e["entity_group"],
                    e["start"] + len(word) - len(word.lstrip()),
                    e["end"] - len(word) + len(word.rstrip()),
                    float(e["score"]),
                )
                for e, word in places
                if word.strip()
            ]
        )
    return trimmed


def check_equal(pipe: ws.Pipeline, texts: list[str], strategy: str) -> int:
    count = 0
    for text, prediction, entities in zip(texts, pipe(texts), reference(pipe, texts, strategy), strict=True):
        assert found(prediction) == [entity[:3] for entity in entities], text
        scores = [entity["score"] for entity in prediction.entities]
        assert scores == pytest.approx([entity[3] for entity in entities], abs=1e-5)
        assert all(text[entity["start"] : entity["end"]] == entity["word"] for entity in prediction.entities)
        count += len(entities)
    return count


class TestParity:
    pytestmark = needs_data

    @pytest.mark.parametrize("family", ["distilbert", "roberta", "modernbert"])
    def test_simple_is_the_pipelines_simple(
        self, load: Callable[..., ws.Pipeline], family: str, real_texts: list[str]
    ) -> None:
        pipe = load(family, aggregation="simple", long_text="truncate")
        assert len(real_texts) >= 200
        assert check_equal(pipe, real_texts, "simple") > 1000  # random weights find something everywhere

    @pytest.mark.parametrize(
        ("family", "strategy"), [("bert", "first"), ("distilbert", "first"), ("bert", "average"), ("bert", "max")]
    )
    def test_words_are_the_pipelines_where_it_knows_words(
        self, load: Callable[..., ws.Pipeline], family: str, strategy: str, real_texts: list[str]
    ) -> None:
        pipe = load(family, aggregation=strategy, long_text="truncate")
        assert check_equal(pipe, real_texts, strategy) > 1000

    def test_the_real_encoder(self, encoder: Path, tmp_path: Path, real_texts: list[str]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            model = transformers.AutoModelForTokenClassification.from_pretrained(
                encoder, num_labels=5, id2label=dict(enumerate(BIO)), label2id={name: i for i, name in enumerate(BIO)}
            )
        model.save_pretrained(tmp_path)
        transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path)
        assert check_equal(ws.load(tmp_path, device="cpu"), real_texts, "first") > 500


# --- windows ----------------------------------------------------------------------------------------------------------


def test_each_token_is_judged_where_most_is_seen_around_it(load: Callable[..., ws.Pipeline]) -> None:
    """Against transformers' own windows, one by one, with the choice written out."""
    room, stride = 22, 8
    pipe = load("bert", aggregation="simple", max_length=room + 2, stride=stride)
    text = "a good film with a dull plot and wonderful words, happy and sad: 0123456789 stories begin. " * 3
    encoded = pipe.tokenizer(
        text, truncation=True, max_length=room + 2, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )  # fmt: skip
    chosen: dict[tuple[int, int], tuple[int, int]] = {}
    count = len(encoded["input_ids"])
    for window, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
        with torch.inference_mode():
            logits = pipe.model(torch.tensor([ids])).logits[0]
        size = len(ids) - 2
        for i in range(size):
            before = i if window else 10**6
            after = size - 1 - i if window < count - 1 else 10**6
            place = tuple(offsets[i + 1])
            if place not in chosen or chosen[place][0] < min(before, after):
                chosen[place] = (min(before, after), int(logits[i + 1].argmax()))  # type: ignore[index]
    wanted = [BIO[label] for _, (_, label) in sorted(chosen.items())]
    assert count > 5
    [prediction] = pipe([text])
    assert prediction.judged is not None
    assert [BIO[i] for i in prediction.judged.probabilities.argmax(axis=1)] == wanted
    assert list(zip(prediction.judged.starts, prediction.judged.ends, strict=True)) == sorted(chosen)
    assert not prediction.truncated


def test_a_text_that_fits_is_the_same_in_windows(load: Callable[..., ws.Pipeline]) -> None:
    texts = ["a good film", "", "the worst two hours of my life " * 3]
    windows, cut = load("roberta"), load("roberta", long_text="truncate")
    assert [as_dict(p) for p in windows(texts)] == [as_dict(p) for p in cut(texts)]


@pytest.mark.parametrize("given", ["text", "tokens"])
def test_a_document_of_20000_words(sure: Path, given: str) -> None:
    """Every entity is found, at the document's start and end and on all sides of every seam, with its exact place."""
    started = time.process_time()
    limit, stride = 128, 32
    step, rng = limit - 2 - stride, random.Random(0)
    words = rng.choices(["good", "film", "words", "sad", "happy", "and"], k=20_000)  # one token each
    entities = (["LangChain", "transformers"], ["story"], ["story", "story"], ["LangChain", "story", "plot", "plot"])
    starts = [0, 20_000 - 2, *rng.sample(range(200, 19_000, 150), 40)]
    starts += [step * k + shift + rng.randint(-3, 1) for k in range(3, 200, 4) for shift in (0, stride // 2, stride)]
    for start in starts:
        entity = entities[1 if start == 0 else 0 if start > 19_990 else rng.randrange(4)]
        words[start : start + len(entity)] = entity
    text = " ".join(words)
    spans = [
        ("PER" if match[0][0] == "L" else "LOC", *match.span())
        for match in re.finditer(r"LangChain( transformers)*|story( plot)*", text)
    ]
    assert len(words) == 20_000
    assert spans[0][1] == 0
    assert spans[-1][2] == len(text)
    pipe = ws.load(sure, options={"stride": stride}, device="cpu")
    [prediction] = pipe([{"text": text} if given == "text" else {"tokens": words}])
    stray = {i for i, match in enumerate(re.finditer(r"\S+", text)) if match[0] in ("transformers", "plot")}
    assert not {i for i in stray if words[i - 1] not in WORDS and words[i - 1] not in ("LangChain",)}
    assert found(prediction) == spans
    assert len(spans) > 150
    assert not prediction.truncated
    if given == "tokens":
        assert prediction.tags == tuple(WORDS.get(word.lower(), "O") for word in words)
    assert time.process_time() - started < 20


def test_a_cut_text_says_so_and_tags_what_it_saw(sure: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = ws.load(sure, options={"long_text": "truncate", "max_length": 12}, device="cpu")
    words = ["story", *["good"] * 20, "story"]
    with caplog.at_level(logging.WARNING, "warmstart"):
        [prediction] = pipe([{"tokens": words}])
    assert prediction.truncated
    assert prediction.tags == ("B-LOC", *["O"] * 21)
    assert "were cut" in caplog.text


# --- spans, words, pieces ---------------------------------------------------------------------------------------------


def test_adjacent_entities_of_one_type_stay_apart(sure: Path) -> None:
    pipe = ws.load(sure, device="cpu")
    text = "story plot story story, LangChain LangChain transformers"
    expected = [("LOC", 0, 10), ("LOC", 11, 16), ("LOC", 17, 22), ("PER", 24, 33), ("PER", 34, 56)]
    assert found(pipe(text)) == expected
    [first, *_] = pipe(text).entities
    assert (first["word"], 0.5 < first["score"] < 1) == ("story plot", True)


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("(story)", [("LOC", 1, 6)]),
        ("a story.", [("LOC", 2, 7)]),
        ("story's plot", [("LOC", 0, 5), ("LOC", 8, 12)]),
        ("\u3000story\u200b plot\n\n", [("LOC", 1, 12)]),
        ("\U0001f600 story", [("LOC", 2, 7)]),
        ("STORY", [("LOC", 0, 5)]),
        ("sto\u0301ry", [("LOC", 0, 6)]),  # the accent is dropped by the tokenizer, and part of the word
        ("storyline", [("LOC", 0, 9)]),  # a word has the tag of its first piece
        ("underplot", []),
        ("", []),
    ],
)
def test_places_are_of_the_text_as_it_was_given(sure: Path, text: str, spans: list[tuple[str, int, int]]) -> None:
    assert found(ws.load(sure, device="cpu")(text)) == spans


def test_words_as_given_get_one_tag_each(sure: Path) -> None:
    pipe = ws.load(sure, device="cpu")
    tokens = ["", "story", "\u200b", "plot", "@story", "underplot", "story-plot", "LangChain"]
    [prediction] = pipe([{"tokens": tokens}])
    # What the tokenizer drops is part of the entity around it; a word has the tag of its first piece.
    assert prediction.tags == ("O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "B-LOC", "B-PER")
    assert [entity["word"] for entity in prediction.entities] == ["story \u200b plot", "story-plot", "LangChain"]
    assert pipe([{"tokens": []}])[0].tags == ()


@pytest.mark.parametrize("aggregation", ["first", "average", "max", "simple"])
def test_what_is_trained_for_words_as_given_is_read_back(load: Callable[..., ws.Pipeline], aggregation: str) -> None:
    """Also of words in which the tokenizer sees several: Paris-Lyon is trained as B-, I-, I-, and begins an entity."""
    task = load("bert", aggregation=aggregation, max_length=20, stride=6).task
    tokens = ["Paris-Lyon", "Rome-Oslo", "and", "U.S.", "@LangChain", "(a+b)"]
    tags = ("B-LOC", "B-LOC", "O", "B-LOC", "I-LOC", "B-PER")
    row = Row({"tokens": tokens, "tags": list(tags)})
    features = list(task.encode([row], train=True))
    assert len(features) > 1
    outputs, label = [], 0
    for feature in features:
        logits = np.zeros((feature.length, len(BIO)), dtype=np.float32)
        for at in range(*feature.meta["owned"]):
            # A word's other pieces are not trained: what a model says of them is taken to be what it says of the first.
            label = label if feature.targets["labels"][at] == IGNORED else int(feature.targets["labels"][at])
            logits[at, label] = 8 if BIO[label].startswith("I") else 5  # surer of what is inside: no reason to join
        outputs.append({"logits": logits})
    prediction = task.decode(row, features, outputs)
    assert prediction.tags == tags
    words = [entity["word"] for entity in prediction.entities]
    assert words == ["Paris-Lyon", "Rome-Oslo", "U.S. @LangChain", "(a+b)"]
    assert task.score([prediction], [row]).metrics["f1"].value == 1


def test_words_may_be_those_of_a_text(sure: Path) -> None:
    pipe = ws.load(sure, device="cpu")
    text = "The  story's end: LangChain."
    words = ["The", "story", "'s", "end", ":", "LangChain", "."]
    placed = [{"text": w, "start": text.index(w), "end": text.index(w) + len(w), "id": i} for i, w in enumerate(words)]
    for row in ({"text": text, "tokens": words}, {"text": text, "tokens": placed}):
        [prediction] = pipe([row])
        assert prediction.tags == ("O", "B-LOC", "O", "O", "O", "B-PER", "O")
        assert found(prediction) == [("LOC", 5, 10), ("PER", 18, 27)]
    with pytest.raises(DataError) as caught:
        pipe([{"text": "a"}, {"text": text, "tokens": ["The", "end", "story"]}])
    assert (caught.value.code, caught.value.where.row, caught.value.where.field) == ("tokens-not-in-text", 1, "tokens")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_word_is_trained_at_its_first_piece(load: Callable[..., ws.Pipeline], family: str) -> None:
    pipe = load(family)
    rows = [
        Row({"text": "Good, LangChain fun.", "tags": [[6, 15, "PER"], [16, 19, "LOC"]]}),
        Row({"tokens": ["Good", ",", "LangChain", "fun", "."], "tags": ["O", "O", "B-PER", "U-LOC", "O"]}),
        Row({"tokens": ["@LangChain", "fun"], "tags": ["S-PER", "O"]}),
    ]
    wanted = [[("Good", "O"), (",", "O"), ("LangChain", "B-PER"), ("fun", "B-LOC"), (".", "O")]] * 2
    wanted.append([("@", "B-PER"), ("LangChain", "I-PER"), ("fun", "O")])
    for row, feature, pairs in zip(rows, pipe.task.encode(rows, train=True), wanted, strict=True):
        text = row.get("text") or " ".join(row["tokens"])
        places = np.frombuffer(feature.meta["places"], np.int32).reshape(-1, 3)
        trained = np.flatnonzero(feature.targets["labels"] != IGNORED)
        words = [re.match(r"\w+|\S", text[places[i, 0] :])[0] for i in trained]  # type: ignore[index]
        assert list(zip(words, [BIO[feature.targets["labels"][i]] for i in trained], strict=True)) == pairs


def test_windows_train_every_word_once(load: Callable[..., ws.Pipeline]) -> None:
    text = "good film and LangChain story " * 20
    tags = [[match.start(), match.end(), "PER"] for match in re.finditer("LangChain", text)]
    row = Row({"text": text, "tags": tags})
    whole = load("bert")
    cut = load("bert", max_length=16, stride=6)

    def trained(pipe: ws.Pipeline) -> list[int]:
        features = list(pipe.task.encode([row], train=True))
        return [i for feature in features for i in feature.targets["labels"].tolist() if i != IGNORED]

    assert trained(cut) == trained(whole)
    assert len(list(cut.task.encode([row]))) > 8
    assert len(trained(whole)) == 100


def test_learning_the_table_of_labels(load: Callable[..., ws.Pipeline], caplog: pytest.LogCaptureFixture) -> None:
    task = load("bert").task
    spans = [Row({"text": "Ann", "tags": [[0, 3, "PER"]]}), Row({"text": "Ann", "tags": []})]
    assert task.learn(spans) is task
    bilou = [Row({"tokens": ["Ann", "in"], "tags": ["U-PER", "O"]})]
    assert task.learn(bilou) is task  # another scheme of the same types
    names = [Row({"tokens": ["Ann", "Lee", "May"], "tags": ["B-name", "L-name", "U-Date"]})]
    labels = task.learn(names).with_labels(task.learn(names).labels).labels  # type: ignore[attr-defined]
    assert labels == ("O", *(f"{p}-{name}" for name in ("Date", "name") for p in "BILU"))
    speech = [Row({"tokens": ["Ann", "sings"], "tags": ["NOUN", "VERB"]})]
    assert task.learn(speech).labels == ("NOUN", "VERB")  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "warmstart"):
        cases = [Row({"text": "Ann Bob", "tags": [[0, 3, "name"], [4, 7, "Name"], [4, 7, "name"]]})]
        assert task.learn(cases).labels == ("O", "B-name", "I-name")  # type: ignore[attr-defined]
    assert "differ in case only" in caplog.text


def test_words_without_prefixes_are_learned_and_judged(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """IO tags: neighbours of one type are one entity, in the rows and in what is found."""
    rows = [
        {"tokens": ["good", "langchain", "transformers", "film"], "tags": ["O", "PER", "PER", "O"]},
        {"tokens": ["story", "and", "plot", "story"], "tags": ["LOC", "O", "LOC", "LOC"]},
        {"tokens": ["langchain", "story", "words"], "tags": ["PER", "LOC", "O"]},
        {"tokens": ["sad", "words"], "tags": ["O", "O"]},
    ]
    config = ws.TrainConfig(epochs=60, batch_size=4, learning_rate=1e-2, warmup=0.0, schedule="constant", device="cpu")
    run = ws.train(tiny("bert", "base"), rows, output=tmp_path / "run", task="ner", config=config)
    pipe = ws.load(tmp_path / "run", device="cpu")
    assert pipe.task.labels == ("O", "LOC", "PER")  # type: ignore[attr-defined]
    assert [list(prediction.tags) for prediction in pipe(rows)] == [row["tags"] for row in rows]
    assert found(pipe(rows[1])) == [("LOC", 0, 5), ("LOC", 10, 20)]
    entities = 0
    for judged, data in ((run.pipeline, rows), (pipe, [row | {"tags": _as_bio(row["tags"])} for row in rows])):
        result = ws.evaluate(judged, data)
        assert {name: metric.value for name, metric in result.metrics.items()} == dict.fromkeys(
            ("precision", "recall", "f1", "macro_f1", "f1_LOC", "f1_PER", "accuracy"), 1.0
        )
        entities += sum(len(prediction.entities) for prediction in result.predictions)
    assert entities == 2 * 5


def _as_bio(tags: list[str]) -> list[str]:
    return [
        tag if tag == "O" else f"{'I' if before == tag else 'B'}-{tag}"
        for before, tag in zip(["O", *tags], tags, strict=False)
    ]


def test_what_prodigy_writes_is_trained_as_it_is(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Placed tokens beside the text, spans of characters, and none at all where nobody found one."""
    rows = []
    for text, entity in (("The  story's end.", "story"), ("LangChain, sad words", "LangChain"), ("sad words.", None)):
        tokens = [
            {"text": match[0], "start": match.start(), "end": match.end(), "id": i}
            for i, match in enumerate(re.finditer(r"\w+|[^\w\s]", text))
        ]
        row: dict[str, Any] = {"text": text, "tokens": tokens, "_task_hash": len(rows), "answer": "accept"}
        if entity is not None:
            start = text.index(entity)
            row["spans"] = [{"start": start, "end": start + len(entity), "label": entity[0], "token_start": 0}]
        rows.append(row)
    rows.append(rows[0] | {"spans": [], "answer": "reject"})
    path = tmp_path / "prodigy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ws.TrainConfig(epochs=60, batch_size=4, learning_rate=1e-2, warmup=0.0, schedule="constant", device="cpu")
    run = ws.train(tiny("bert", "base"), path, output=tmp_path / "run", task="ner", config=config)
    assert [found(prediction) for prediction in run.pipeline(rows[:3])] == [[("s", 5, 10)], [("L", 0, 9)], []]
    assert run.pipeline(rows[0]).tags == ("O", "B-s", "O", "O", "O", "O")
    result = ws.evaluate(run.pipeline, path)
    assert result.metrics["f1"].value == 1 and len(result.predictions) == 3


def test_a_share_of_rows_of_words_can_be_held_out(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"tokens": ["Ann", f"word{i}"], "tags": ["B-PER", "O"]} for i in range(40)]
    config = ws.TrainConfig(max_steps=1, device="cpu")
    run = ws.train(tiny("bert", "base"), rows, output=tmp_path / "run", task="ner", validation=0.2, config=config)
    assert run.validation is not None
    assert 2 <= run.validation.rows <= 16
    report = (tmp_path / "run" / "report.html").read_text()
    assert "f1" in report.lower()


def test_a_classifier_of_whole_texts_is_no_tagger(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), task="ner", device="cpu")
    with pytest.raises(UsageError) as caught:
        pipe("a film")
    assert caught.value.code == "labels-unknown"


# --- judging ----------------------------------------------------------------------------------------------------------


def test_judging_words_and_characters(sure: Path) -> None:
    pipe = ws.load(sure, device="cpu")
    words = [
        {"tokens": ["LangChain", "transformers", "story", "story"], "tags": ["B-PER", "I-PER", "B-LOC", "O"]},
        {"tokens": ["good", "plot"], "tags": ["O", "B-PER"]},
    ]
    texts = [
        {"text": "LangChain transformers story story", "tags": [[0, 22, "PER"], [23, 28, "LOC"]]},
        {"text": "good plot", "tags": [[5, 9, "PER"]]},
    ]
    for rows in (words, texts):
        result = ws.evaluate(pipe, rows)
        values = {name: metric.value for name, metric in result.metrics.items()}
        assert values["precision"] == pytest.approx(2 / 4)
        assert values["recall"] == pytest.approx(2 / 3)
        assert values["f1"] == pytest.approx(4 / 7)
        assert values["f1_PER"] == pytest.approx(2 / 3)
        assert values["f1_LOC"] == pytest.approx(1 / 2)
        assert values["accuracy"] == pytest.approx(4 / 6)
        assert result.primary == "f1"
        assert result.per_example["correct"].tolist() == [False, False]
    assert ws.evaluate(pipe, words).loss == pytest.approx(ws.evaluate(pipe, texts).loss)


def test_predictions_from_json_are_judged_but_for_their_loss(sure: Path) -> None:
    pipe = ws.load(sure, device="cpu")
    rows = [Row({"tokens": ["story", "good"], "tags": ["B-LOC", "O"]})]
    task = pipe.task
    [prediction] = pipe.predict_rows(rows)
    again = from_dict(TaggedText, json.loads(json.dumps(as_dict(prediction))))
    scores = task.score([again], rows)
    assert scores.metrics["f1"].value == 1
    assert np.isnan(scores.per_example["loss"]).all()


def test_rows_of_a_data_frame(sure: Path) -> None:
    """There, a list is a numpy array."""
    frame = pandas.DataFrame({"words": [np.array(["story", "good"])], "ner_tags": [np.array(["B-LOC", "O"])]})
    assert ws.evaluate(ws.load(sure, device="cpu"), frame).metrics["f1"].value == 1


def test_rows_without_an_entity_have_no_f1(sure: Path) -> None:
    result = ws.evaluate(ws.load(sure, device="cpu"), [{"text": "good", "tags": []}, {"text": "", "tags": []}])
    assert set(result.metrics) == {"accuracy"}
    assert np.isfinite(result.loss)


# --- real data --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_rows() -> list[Row]:
    return list(read(DATA / "entities" / "validation.conll", fields=TokenClassification.fields, targets=True))


class TestRealData:
    pytestmark = needs_data

    def test_true_tags_as_predictions_are_perfect(self, load: Callable[..., ws.Pipeline], real_rows: list[Row]) -> None:
        """Whatever the tokenizer does to tweets: tags to targets to tags loses no entity."""
        task = load("bert").task.learn(real_rows)
        assert task.labels[:3] == ("O", "B-corporation", "I-corporation")  # type: ignore[attr-defined]
        features = list(task.encode(real_rows, train=True))
        targets = [np.maximum(feature.targets["labels"], 0) for feature in features]
        logits = [{"logits": np.eye(13, dtype=np.float32)[labels] * 50} for labels in targets]
        predictions = [
            task.decode(row, [features[i] for i in members], [logits[i] for i in members])
            for row, members in zip(real_rows, by_row(features, len(real_rows)), strict=True)
        ]
        scores = task.score(predictions, real_rows)
        assert {
            name: scores.metrics[name].value for name in ("f1", "precision", "recall", "accuracy")
        } == dict.fromkeys(("f1", "precision", "recall", "accuracy"), 1.0)
        assert np.allclose(scores.per_example["loss"], 0)
        assert scores.per_example["correct"].all()

    def test_metrics_of_words_are_seqevals(self, load: Callable[..., ws.Pipeline], real_rows: list[Row]) -> None:
        """Of an untrained model, which tags in every wrong way, on the tags as they stand in the file."""
        names = {"person": "PER", "location": "LOC"}
        tags = [[f"{t[:2]}{names[t[2:]]}" if t[2:] in names else "O" for t in row["tags"]] for row in real_rows[:300]]
        rows = [{"tokens": row["tokens"], "tags": own} for row, own in zip(real_rows, tags, strict=False)]
        result = ws.evaluate(load("distilbert"), rows)
        wanted = micro(tags, [prediction.tags for prediction in result.predictions])
        assert wanted[2] > 0
        assert [result.metrics[name].value for name in ("precision", "recall", "f1")] == pytest.approx(wanted)

    def test_the_loss_falls(self, encoder: Path, real_rows: list[Row], tmp_path: Path) -> None:
        losses: list[float] = []
        config = ws.TrainConfig(max_steps=6, batch_size=8, learning_rate=1e-3, warmup=0.0, device="cpu")
        ws.train(
            encoder, real_rows[:48], output=tmp_path / "run", task="ner", config=config,
            progress=lambda progress: losses.append(progress.step.loss),
        )  # fmt: skip
        assert losses[-1] < 0.5 * losses[0]
