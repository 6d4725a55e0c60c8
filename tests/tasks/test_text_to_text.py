"""Text-to-text: what `model.generate` of transformers says, whatever shares the batch, and a model's own loss."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import warmstart as ws
from support.damage import copy_of, edit_json
from support.models import ENCODER_DECODERS, POSITIONS, tiny_checkpoint
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import DataError, UsageError, WarmstartError
from warmstart.features import Batch
from warmstart.rows import Row, read
from warmstart.tasks.contract import Generates
from warmstart.tasks.text_to_text import TextToText

DATA = Path(__file__).parents[3] / "shared" / "data" / "translation" / "test.jsonl"
TEXTS = ["the cast is great", "I love this film, it is wonderful and warm.", "bad", "A dull, tired plot; never begins?"]

# What checkpoints such as bart-large-cnn and opus-mt ask of generating.
SETTINGS: Mapping[str, Any] = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "bad_words_ids": [[7], [9, 11]],
    "encoder_no_repeat_ngram_size": 3,
    "forced_bos_token_id": 5,
}


def checkpoint(tiny_root: Path, family: str) -> Path:
    return tiny_checkpoint(tiny_root, family, "text-to-text")


def loaded(tiny_root: Path, family: str, **options: Any) -> ws.Pipeline:
    return ws.load(checkpoint(tiny_root, family), options={"max_new_tokens": 8} | options, device="cpu")


def plain(pipe: ws.Pipeline, texts: list[str], **arguments: Any) -> list[str]:
    """transformers alone, one text at a time."""
    found = []
    for text in texts:
        inputs = pipe.tokenizer(text, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            [tokens] = pipe.model.generate(**inputs, do_sample=False, **arguments)
        found.append(pipe.tokenizer.decode(tokens, skip_special_tokens=True))
    return found


# --- what is generated ----------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data is absent")
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_it_says_what_generate_says_of_200_real_texts(tiny_root: Path, family: str) -> None:
    texts = [json.loads(line)["source"] for line in DATA.read_text(encoding="utf-8").splitlines()[:200]]
    pipe = loaded(tiny_root, family)
    assert [prediction.text for prediction in pipe(texts)] == plain(pipe, texts, max_new_tokens=8, num_beams=1)


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_beams_say_what_generate_says(tiny_root: Path, family: str) -> None:
    pipe = loaded(tiny_root, family, beams=3, length_penalty=0.5, min_new_tokens=3)
    asked = {"max_new_tokens": 8, "min_new_tokens": 3, "num_beams": 3, "length_penalty": 0.5}
    assert [prediction.text for prediction in pipe(TEXTS)] == plain(pipe, TEXTS, **asked)


@pytest.mark.parametrize("beams", [1, 2])
def test_the_checkpoints_settings_hold(tiny_root: Path, tmp_path: Path, beams: int) -> None:
    folder = copy_of(checkpoint(tiny_root, "bart"), tmp_path / "bart")
    edit_json(folder / "generation_config.json", SETTINGS | {"num_beams": beams, "max_length": 9, "min_length": 4})
    pipe = ws.load(folder, device="cpu")
    task = pipe.task
    assert isinstance(task, TextToText)
    assert (task.beams, task.max_new_tokens, task.min_new_tokens) == (beams, 8, 3)
    found = [prediction.text for prediction in pipe(TEXTS)]
    assert found == plain(pipe, TEXTS)
    assert found != [prediction.text for prediction in loaded(tiny_root, "bart")(TEXTS)]


def test_chosen_options_stand_before_the_checkpoints(tiny_root: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(tiny_root, "t5"), tmp_path / "t5")
    edit_json(folder / "generation_config.json", {"num_beams": 4, "max_length": 41, "min_length": 31})

    def with_options(**options: Any) -> TextToText:
        task = ws.load(folder, options=options, device="cpu").task
        assert isinstance(task, TextToText)
        return task

    assert with_options().min_new_tokens == 30
    short = with_options(max_new_tokens=5)
    assert (short.beams, short.max_new_tokens, short.min_new_tokens) == (4, 5, 5)
    assert with_options(temperature=0.7).beams == with_options(stop="!").beams == 1
    with pytest.raises(UsageError) as conflict:
        with_options(temperature=0.7, beams=2)
    assert conflict.value.code == "option-conflict"


def test_longer_answers_than_the_decoder_has_places(tiny_root: Path) -> None:
    assert loaded(tiny_root, "bart", max_new_tokens=POSITIONS)("bad").new_tokens <= POSITIONS
    with pytest.raises(UsageError) as caught:
        loaded(tiny_root, "bart", max_new_tokens=POSITIONS + 1)
    assert caught.value.code == "option-value"
    assert loaded(tiny_root, "t5", max_new_tokens=POSITIONS + 8)("bad").finish_reason in ("end", "length")


def test_a_stream_joins_to_the_prediction(tiny_root: Path) -> None:
    for options in ({}, {"temperature": 1.5, "seed": 3}, {"stop": "a"}):
        pipe = loaded(tiny_root, "marian", **options)
        assert isinstance(pipe.task, Generates)
        for text in TEXTS:
            stream = pipe.stream(text)
            assert "".join(stream) == stream.prediction.text == pipe(text).text
            assert stream.prediction == pipe(text)
    with pytest.raises(UsageError) as caught:
        list(loaded(tiny_root, "marian", beams=2).stream("bad"))
    assert caught.value.code == "stream-with-beams"


def test_a_stream_of_a_model_in_train_mode_says_the_same(tiny_root: Path) -> None:
    """The encoder has dropout, which the person's mode must not turn on."""
    pipe = loaded(tiny_root, "bart")
    expected = [prediction.text for prediction in pipe(TEXTS)]
    pipe.model.train()
    encoder = pipe.model.get_encoder()
    modes: list[bool] = []
    encoder.register_forward_pre_hook(lambda module, given: modes.append(module.training))
    for text, whole in zip(TEXTS, expected, strict=True):
        stream = pipe.stream(text)
        assert modes == [] and next(stream) and modes == [False]  # nothing runs before the first step
        assert pipe.model.training and encoder.training  # between tokens, the model is ours again
        assert stream.text + "".join(stream) == whole
        modes.clear()


def test_lack_of_memory_in_the_encoder_is_said(tiny_root: Path) -> None:
    pipe = loaded(tiny_root, "bart")

    def full(module: Any, given: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    pipe.model.get_encoder().register_forward_pre_hook(full)
    for call in (lambda: next(pipe.stream("bad")), lambda: pipe("bad")):
        with pytest.raises(WarmstartError) as caught:
            call()
        assert caught.value.code == "out-of-memory"


def test_draws_differ_by_seed_and_text_alone(tiny_root: Path) -> None:
    drawn = [loaded(tiny_root, "t5", temperature=2.0, seed=seed)(TEXTS) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert drawn[0][:2] == loaded(tiny_root, "t5", temperature=2.0)(TEXTS[:2])


def test_a_stop_text_ends_the_answer(tiny_root: Path) -> None:
    whole = loaded(tiny_root, "t5")(TEXTS[0])
    stop = whole.text[2:5]
    assert stop
    cut = loaded(tiny_root, "t5", stop=stop)(TEXTS[0])
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_a_model_that_answers_with_nan_gives_no_text(tiny_root: Path, family: str, beams: int) -> None:
    pipe = loaded(tiny_root, family, beams=beams)
    with torch.no_grad():
        pipe.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(WarmstartError) as caught:
        pipe(TEXTS[:2])
    assert (caught.value.code, caught.value.where.row) == ("output-not-a-number", 0)


def test_a_stop_that_is_a_special_token_ends_the_answer_as_a_token(tiny_root: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(tiny_root, "marian"), tmp_path / "marian")
    edit_json(folder / "generation_config.json", {"sequence_bias": [[[4], 50.0]]})
    found = ws.load(folder, options={"max_new_tokens": 8, "stop": "<mask>"}, device="cpu")("x")
    assert (found.new_tokens, found.finish_reason) == (0, "end")
    assert ws.load(folder, options={"max_new_tokens": 8}, device="cpu")("x").finish_reason == "length"
    with pytest.raises(UsageError) as caught:
        ws.load(folder, options={"stop": " <mask>"}, device="cpu")
    assert caught.value.code == "option-value"


def test_the_cache_bounds_a_batch(tiny_root: Path) -> None:
    task = loaded(tiny_root, "bart", cache_megabytes=1).task
    assert isinstance(task, TextToText)
    # Two vectors of 32 float32 numbers in each of two layers, for what is read and what is said.
    assert task.rows_at_most(24) == (1 << 20) // ((24 + 8) * 2 * 2 * 32 * 4)
    assert dataclasses.replace(task, beams=4).rows_at_most(24) == task.rows_at_most(24) // 4
    assert task.rows_at_most(10**9) == 0


def test_a_row_whose_cache_does_not_fit_alone_is_refused(tiny_root: Path, tmp_path: Path) -> None:
    pipe = loaded(tiny_root, "t5", cache_megabytes=1, max_new_tokens=4000)
    rows = [Row({"source": text, "target": "good"}) for text in TEXTS]
    for call in (lambda: pipe(TEXTS), lambda: list(pipe.stream(TEXTS[0])), lambda: ws.evaluate(pipe, rows)):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.code == "cache-too-large"
        assert "4,000 new ones need 2.0 MB" in caught.value.what and "cache_megabytes=2" in caught.value.fix
    assert len(list(pipe.task.encode(rows, train=True))) == len(rows)  # nothing is generated in training
    run, options = tmp_path / "run", {"cache_megabytes": 1, "max_new_tokens": 4000}
    with pytest.raises(DataError) as caught:
        ws.train(checkpoint(tiny_root, "t5"), rows, output=run, task="text-to-text", options=options, validation=rows)
    assert caught.value.code == "cache-too-large", "before the first step: evaluation will generate"
    assert loaded(tiny_root, "t5", cache_megabytes=2, max_new_tokens=4000).task.rows_at_most(10) == 1


# --- the source -----------------------------------------------------------------------------------------------------


def test_a_prefix_is_read_before_each_text(tiny_root: Path) -> None:
    given, spelled = loaded(tiny_root, "t5", prefix="the film: "), loaded(tiny_root, "t5")
    assert given(TEXTS) == spelled([f"the film: {text}" for text in TEXTS])
    assert given("").flags == ("empty-text",)


def test_a_long_text_is_cut_or_an_error(tiny_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "a good film " * 100
    with caplog.at_level(logging.WARNING, "warmstart"):
        found = loaded(tiny_root, "bart")(["bad", long])
    assert [prediction.truncated for prediction in found] == [False, True]
    assert found[1].tokens == POSITIONS
    assert any("1 of 2 texts" in record.message and "long_text=error" in record.message for record in caplog.records)
    with pytest.raises(DataError) as caught:
        loaded(tiny_root, "bart", long_text="error")(["bad", long])
    assert (caught.value.code, caught.value.where.row) == ("text-too-long", 1)


def test_sources_that_are_cut_in_training_are_said_once(tiny_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = loaded(tiny_root, "bart")
    rows = [Row({"source": text, "target": "bad"}) for text in ("bad", "a good film " * 100)]
    for judge in (lambda: list(pipe.task.encode(rows, train=True)), lambda: ws.evaluate(pipe, rows)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "warmstart"):
            judge()
        [message] = caplog.messages
        assert message.startswith(f"1 of 2 sources are longer than {POSITIONS} tokens") and "long_text=error" in message
    with pytest.raises(DataError) as caught:
        list(loaded(tiny_root, "bart", long_text="error").task.encode(rows, train=True))
    assert caught.value.code == "text-too-long"


def test_columns_of_known_data_sets() -> None:
    for columns in ({"text": "a", "summary": "b"}, {"en": "a", "de": "b"}, {"dialogue": "a", "summary": "b"}):
        [row] = read([columns], fields=TextToText.fields, targets=True)
        assert row == {"source": "a", "target": "b"}


# --- the target -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_loss_is_the_models_own(tiny_root: Path, family: str) -> None:
    pipe = loaded(tiny_root, family)
    rows = [Row({"source": text, "target": TEXTS[i - 1]}) for i, text in enumerate(TEXTS)]
    features = list(pipe.task.encode(rows, train=True))
    batch = to_tensors(collate(features, pipe.task.pads), "cpu")
    with torch.inference_mode():
        losses, weights = pipe.task.loss(pipe.task.forward(pipe.model, batch), batch)
        own = pipe.model(**batch.inputs, labels=batch.targets["labels"]).loss
    assert weights.tolist() == [len(feature.targets["labels"]) for feature in features]
    assert ((losses * weights).sum() / weights.sum()).item() == pytest.approx(own.item(), rel=1e-6)
    tokenized = pipe.tokenizer([row["target"] for row in rows])["input_ids"]
    assert [feature.targets["labels"].tolist() for feature in features] == tokenized


def test_the_loss_is_computed_in_float32(tiny_root: Path) -> None:
    """bfloat16 counts to 256 only, and rounds losses to three digits."""
    task = loaded(tiny_root, "t5").task
    labels = torch.full((1, 301), 5)
    logits = torch.randn(1, 301, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    batch = Batch((), {}, {"labels": labels})
    losses, weights = task.loss({"logits": logits}, batch)
    assert weights.tolist() == [301]
    torch.testing.assert_close(losses, -logits.float().log_softmax(-1)[..., 5].mean(1), atol=1e-6, rtol=1e-6)


def test_a_long_target_is_learned_without_an_end(tiny_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = loaded(tiny_root, "bart").task
    rows = [Row({"source": "bad", "target": target}) for target in ("bad", "a good film " * 100)]
    with caplog.at_level(logging.WARNING, "warmstart"):
        short, long = (feature.targets["labels"] for feature in task.encode(rows, train=True))
    end = task.end_ids[0]  # type: ignore[attr-defined]
    assert short[-1] == end and end not in long
    assert len(long) == POSITIONS - 1
    assert ["1 of 2 targets" in record.message for record in caplog.records] == [True]


def test_a_target_gets_an_end_where_the_tokenizer_gives_none(tiny_root: Path, tmp_path: Path) -> None:
    folder = copy_of(checkpoint(tiny_root, "t5"), tmp_path / "t5")
    edit_json(folder / "tokenizer.json", {"post_processor": None})
    task = ws.load(folder, device="cpu").task
    [feature] = task.encode([Row({"source": "bad", "target": "bad"})], train=True)
    assert feature.targets["labels"][-1] == task.end_ids[0]  # type: ignore[attr-defined]
    assert np.isin(feature.inputs["input_ids"], task.end_ids).sum() == 0  # type: ignore[attr-defined]


def test_judged_by_texts_and_by_loss(tiny_root: Path) -> None:
    pipe = loaded(tiny_root, "marian")
    texts = pipe(TEXTS)
    rows = [{"source": text, "target": found.text or "x"} for text, found in zip(TEXTS, texts, strict=True)]
    result = ws.evaluate(pipe, rows)
    assert result.primary == "chrf" and result.metrics["chrf"].value == pytest.approx(100)
    assert {"chrf", "bleu", "rouge1", "rouge2", "rougeL", "perplexity"} == set(result.metrics)
    assert list(result.predictions) == texts
    assert {"loss", "chrf", "rougeL"} < set(result.per_example)
    assert set(result.measures) == set(result.metrics)
