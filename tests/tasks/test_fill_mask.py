"""Masks are filled as transformers fills them; masked-language training is exact, and lowers the perplexity."""

from __future__ import annotations

import copy
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import warmstart as ws
from support.damage import copy_of
from support.models import tiny_tokenizer
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import CheckpointError, UsageError
from warmstart.features import Feature
from warmstart.randomness import generator
from warmstart.rows import Row
from warmstart.tasks import as_dict
from warmstart.tasks.fill_mask import IGNORED, FillMask, reading_mask
from warmstart.tasks.position_head import logits_at
from warmstart.tokenization import Tokenizer

DATA = Path(__file__).parent.parent.parent.parent / "shared" / "data"
MASKS = {"bert": "[MASK]", "distilbert": "[MASK]", "roberta": "<mask>", "modernbert": "<mask>"}


def load(tiny: Callable[..., Path], family: str = "bert", **options: Any) -> ws.Pipeline:
    return ws.load(tiny(family, "masks"), options=options, device="cpu")


def task_of(pipe: ws.Pipeline) -> FillMask:
    assert isinstance(pipe.task, FillMask)
    return pipe.task


@contextmanager
def reference(folder: Path) -> Iterator[Any]:
    """transformers' pipeline over the folder, without its greetings."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    finally:
        transformers.logging.set_verbosity(level)


def agree(folder: Path, texts: list[str], top_k: int = 5) -> int:
    """Each mask's tokens, their order, spelling and sequences are equal, their scores to 1e-5: of so many masks."""
    compared = 0
    ours = ws.load(folder, options={"top_k": top_k}, device="cpu")(texts)
    with reference(folder) as pipeline:
        for text, prediction in zip(texts, ours, strict=True):
            theirs = pipeline(text, top_k=top_k)
            theirs = [theirs] if isinstance(theirs[0], dict) else theirs
            assert len(prediction.masks) == len(theirs)
            for mine, expected in zip(prediction.masks, theirs, strict=True):
                np.testing.assert_allclose([c["score"] for c in mine], [c["score"] for c in expected], atol=1e-5)
                # Where two tokens are equally probable to the last bits, either may stand first.
                if np.diff([c["score"] for c in expected]).max(initial=-1) < -1e-6:
                    for name in ("token", "token_str", "sequence"):
                        assert [c[name] for c in mine] == [c[name] for c in expected]
                    compared += 1
    return compared


def with_masks(text: str, mask: str, seed: int) -> str:
    """The text with one or two of its words masked."""
    words = text.split()[:14]  # a pipeline fails above the limit of the tiny models
    for i in generator(seed, "places").choice(len(words), min(len(words), 1 + seed % 2), replace=False):
        words[i] = mask
    return " ".join(words)


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("family", MASKS)
def test_real_texts_are_filled_as_transformers_fills_them(tiny: Callable[..., Path], family: str) -> None:
    """Four families, 200 texts each, most of them with candidates that are told apart."""
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    texts = []
    for name in ("reviews", "intents"):
        with (DATA / name / "train.jsonl").open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in itertools.islice(lines, 100)]
    assert agree(tiny(family, "masks"), [with_masks(text, MASKS[family], i) for i, text in enumerate(texts)]) >= 200


@pytest.mark.parametrize("family", MASKS)
def test_odd_texts_are_filled_as_transformers_fills_them(tiny: Callable[..., Path], family: str) -> None:
    """Spaces beside a mask belong to it or to the text, by the token's own rules."""
    mask = MASKS[family]
    odd = [mask, f"a{mask}b", f"  {mask}  ", f"{mask}{mask}", f"good {mask}.", f"café\t{mask} 日本", f"({mask})!?"]
    agree(tiny(family, "masks"), odd, top_k=3)


def test_more_candidates_than_tokens_are_all_tokens(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, top_k=10_000)
    [candidates] = pipe("a [MASK]").masks
    assert len(candidates) == pipe.model.config.vocab_size
    assert math.isclose(sum(candidate["score"] for candidate in candidates), 1, abs_tol=1e-4)
    assert [c["score"] for c in candidates] == sorted((c["score"] for c in candidates), reverse=True)


# --- masks and windows ------------------------------------------------------------------------------------------------


def test_a_text_without_a_mask_says_so(tiny: Callable[..., Path]) -> None:
    prediction = load(tiny)("a good film")
    assert (prediction.masks, prediction.flags, prediction.tokens) == ((), ("no-mask",), 5)


def test_t53_other_special_tokens_stay_text(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    prediction = pipe("[CLS] good [MASK] film [SEP]")
    assert len(prediction.masks) == 1
    assert prediction.flags == ("special-tokens-as-text",)
    assert prediction.tokens > 10  # the two are spelled out, letter by letter
    assert pipe("good [MASK] film").flags == ()  # the healthy twin


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_every_mask_of_a_long_text_is_filled_once(tiny: Callable[..., Path], family: str) -> None:
    """Windows overlap; of a mask that stands in two, the one with more context counts."""
    mask = MASKS[family]
    text = " ".join(f"film story {mask}" if i % 7 == 0 else "great cast" for i in range(200))
    pipe = load(tiny, family, max_length=32, stride=12)
    prediction = pipe(text)
    assert len(prediction.masks) == text.count(mask) == 29
    assert not prediction.truncated and prediction.flags == ()
    features = list(pipe.task.encode([Row({"text": text})]))
    assert len(features) > 10 and prediction.tokens == sum(feature.length for feature in features)
    cut = load(tiny, family, max_length=32, long_text="truncate")(text)
    assert cut.truncated and 0 < len(cut.masks) < 29


@pytest.mark.parametrize("stride", [1, 6, 12])
def test_windows_of_a_text_that_fits_change_nothing(tiny: Callable[..., Path], stride: int) -> None:
    text = "a [MASK] film and a [MASK] cast"
    assert as_dict(load(tiny, stride=stride)(text)) == as_dict(load(tiny, long_text="truncate")(text))


def test_a_checkpoint_without_a_mask_token_is_refused(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        ws.load(tiny("gpt2"), task="fill-mask")
    assert caught.value.code == "mask-missing" and "gpt2" in str(caught.value.where)


def test_there_are_no_labels(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UsageError) as caught:
        ws.load(tiny("bert", "masks"), labels=["a", "b"])
    assert caught.value.code == "task-has-no-labels"


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_tokenizer_that_reads_masks_reads_nothing_else_into_a_text(family: str) -> None:
    theirs = tiny_tokenizer(family)
    plain = Tokenizer.from_transformers(theirs, limit=64, type_ids=False)
    reading = reading_mask(plain, Path("here"))
    text = f"{theirs.cls_token} good {theirs.mask_token} film {theirs.sep_token}"
    [before], [after] = plain.encode([text]), reading.encode([text])
    assert before.pieces[0].ids.count(theirs.mask_token_id) == 0
    assert after.pieces[0].ids.count(theirs.mask_token_id) == 1
    assert after.pieces[0].ids.count(theirs.cls_token_id) == 1  # its own, not the one that is spelled out
    assert after.flags == before.flags == ("special-tokens-as-text",)
    assert reading.encode([theirs.mask_token])[0].flags == ()
    assert reading.encode(["a good film"])[0].pieces[0].ids == plain.encode(["a good film"])[0].pieces[0].ids
    again = reading_mask(reading, Path("here")).encode([text])[0]
    assert again.pieces[0].ids == after.pieces[0].ids
    assert plain.encode([text])[0].pieces[0].ids == before.pieces[0].ids  # nothing was changed in the first


# --- which tokens are guessed -----------------------------------------------------------------------------------------


def train_features(task: FillMask, texts: list[str]) -> list[Feature]:
    return list(task.encode([Row({"text": text}) for text in texts], train=True))


def test_masks_are_a_function_of_seed_epoch_and_example(tiny: Callable[..., Path]) -> None:
    from warmstart.training.batches import make_batches

    task = load(tiny).task
    rows = [Row({"text": f"a good film with a story that never begins {i}"}) for i in range(6)]

    def masked(seed: int, epoch: int, batch_size: int, order: list[int]) -> dict[str, tuple[bytes, bytes]]:
        batches = make_batches(task, [rows[i] for i in order], seed=seed, batch_size=batch_size, max_tokens=None)
        batches.set_epoch(epoch)
        found = {}
        for k in range(len(batches)):
            for feature in batches[k].features:
                name = rows[order[feature.row]]["text"]
                found[name] = (feature.inputs["input_ids"].tobytes(), feature.targets["labels"].tobytes())
        return found

    plain = list(range(6))
    assert masked(0, 0, 6, plain) == masked(0, 0, 2, plain)  # whatever stands beside a row
    mixed = masked(0, 0, 6, [3, 1, 5, 0, 4, 2])  # an example is its place in the data: two of them keep theirs
    kept = {rows[i]["text"] for i in (1, 4)}
    same = {text for text, masks in masked(0, 0, 6, plain).items() if mixed[text] == masks}
    assert same == kept, (same, kept)
    others = [masked(0, 1, 6, plain), masked(1, 0, 6, plain)]
    assert all(masked(0, 0, 6, plain) != other for other in others) and others[0] != others[1]


def test_fifteen_per_cent_are_guessed_and_of_these_80_10_10(tiny: Callable[..., Path]) -> None:
    task = task_of(load(tiny))
    feature = train_features(task, ["film story great cast plot " * 20])[0]
    ids, guessable = feature.inputs["input_ids"], feature.length - 2
    drawn = [task.vary(feature, generator(seed, "test")) for seed in range(400)]
    chosen = np.stack([f.targets["labels"] != IGNORED for f in drawn])
    seen = np.stack([f.inputs["input_ids"] for f in drawn])
    n = int(chosen.sum())
    assert abs(n / (400 * guessable) - 0.15) < 4 * math.sqrt(0.15 * 0.85 / (400 * guessable))
    mask_id = task.tokenizer.rust.token_to_id("[MASK]")
    shares = {
        0.8: (seen == mask_id)[chosen].mean(),
        0.1: (seen == ids)[chosen].mean(),
    }
    for expected, found in shares.items():
        # A token may be drawn to stand in for itself: one in some hundred of the replaced.
        assert abs(found - expected) < 4 * math.sqrt(expected * (1 - expected) / n) + 0.1 / len(task._words)
    assert (seen == ids)[~chosen].all()
    assert set(np.unique(seen)) <= {*task._words, mask_id, *ids[[0, -1]]}  # no special token stands in for a word


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60), seed=st.integers(0, 10**6))
def test_any_text_has_a_token_to_guess_or_none_at_all(tiny_mask_task: FillMask, text: str, seed: int) -> None:
    for feature in train_features(tiny_mask_task, [text]):
        varied = tiny_mask_task.vary(feature, generator(seed, "vary"))
        before, after = feature.targets["labels"], varied.targets["labels"]
        guessed = after != IGNORED
        assert guessed.any() == (before != IGNORED).any()
        assert (after[guessed] == feature.inputs["input_ids"][guessed]).all()
        assert (varied.inputs["input_ids"][~guessed] == feature.inputs["input_ids"][~guessed]).all()
        assert (after[[0, -1]] == IGNORED).all()  # no special token is guessed


@pytest.fixture(scope="module")
def tiny_mask_task(tiny: Callable[..., Path]) -> FillMask:
    return task_of(load(tiny))


def test_a_mask_in_a_training_text_is_context(tiny: Callable[..., Path]) -> None:
    task = task_of(load(tiny, mask_share=1.0))
    [feature] = train_features(task, ["good [MASK] film"])
    assert (feature.targets["labels"] != IGNORED).tolist() == [False, True, False, True, False]


def test_the_exam_is_a_function_of_the_text_alone(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    texts = [f"a good film with a story that never begins {i}" for i in range(8)]
    rows = [Row({"text": text}) for text in texts]
    there, back = ws.evaluate(pipe, rows), ws.evaluate(pipe, rows[::-1])
    np.testing.assert_allclose(there.per_example["loss"], back.per_example["loss"][::-1], rtol=1e-5)
    assert math.isclose(there.metrics["perplexity"].value, back.metrics["perplexity"].value, rel_tol=1e-5)


# --- the loss, and where it is computed -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MASKS)
def test_loss_and_perplexity_are_those_of_a_plain_forward(tiny: Callable[..., Path], family: str) -> None:
    """transformers computes every logit; the loss of ours, summed by weight, is its mean over the guessed tokens."""
    pipe = load(tiny, family)
    task = task_of(pipe)
    rows = [Row({"text": f"a good film {'with a story that never begins ' * (i % 3)}{i}"}) for i in range(9)]
    batch = to_tensors(collate(list(task.exam(rows)), task.pads), "cpu")
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tiny(family, "masks"), dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = plain(**batch.inputs, labels=batch.targets["labels"]).loss.item()
        losses, weights = task.loss(task.forward(pipe.model, batch), batch)
    assert math.isclose((losses * weights).sum().item() / weights.sum().item(), expected, rel_tol=1e-5)
    found = ws.evaluate(pipe, rows).metrics["perplexity"]
    assert math.isclose(found.value, math.exp(expected), rel_tol=1e-4)
    assert found.lo < found.value < found.hi


@pytest.mark.parametrize("family", MASKS)
def test_gradients_are_those_of_all_logits(tiny: Callable[..., Path], family: str) -> None:
    pipe = load(tiny, family)
    task = task_of(pipe)
    batch = to_tensors(collate(list(task.exam([Row({"text": "a good film"}), Row({"text": "bad"})])), task.pads), "cpu")
    plain = transformers.AutoModelForMaskedLM.from_pretrained(tiny(family, "masks"), dtype=torch.float32).eval()
    plain(**batch.inputs, labels=batch.targets["labels"]).loss.backward()
    losses, weights = task.loss(task.forward(pipe.model, batch), batch)
    ((losses * weights).sum() / weights.sum()).backward()
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    ours = {name: p.grad for name, p in pipe.model.named_parameters() if p.grad is not None}
    assert theirs.keys() == ours.keys() and len(ours) > 10
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_head_runs_at_the_chosen_places_only(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    widths: list[tuple[int, ...]] = []
    hook = pipe.model.cls.register_forward_hook(lambda module, args, output: widths.append(tuple(args[0].shape)))
    try:
        pipe(["a [MASK] film with a long story " * 3, "bad [MASK] [MASK]"])
    finally:
        hook.remove()
    assert widths == [(1, 5, 32)]  # three masks and two, of some sixty tokens


def test_the_model_is_left_as_it_was_and_threads_share_it(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    before = dict(pipe.model._modules)
    texts = [[f"{word} [MASK] film " * n for n in range(1, 9)] for word in ("good", "bad", "great", "sad")]
    alone = [[as_dict(p) for p in pipe(each)] for each in texts]
    found: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.__setitem__(k, [as_dict(p) for p in pipe(texts[k])]))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[k] for k in range(4)] == alone
    assert dict(pipe.model._modules) == before


class Wrapper(torch.nn.Module):
    """As an adapter library wraps a model: its base is the whole inner model."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = inner

    def forward(self, **inputs: Any) -> Any:
        return self.base_model(**inputs)


def test_a_wrapped_model_gives_the_same_logits(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    task = task_of(pipe)
    batch = to_tensors(
        collate(list(task.encode([Row({"text": "a [MASK] film"}), Row({"text": "b"})])), task.pads), "cpu"
    )
    chosen = batch.inputs["input_ids"] == task._mask_id
    with torch.inference_mode():
        plain, wrapped = (logits_at(model, batch.inputs, chosen) for model in (pipe.model, Wrapper(pipe.model)))
        copied = logits_at(copy.deepcopy(pipe.model), batch.inputs, chosen)
        whole = pipe.model(**batch.inputs).logits[chosen]
    for logits in (plain, wrapped, copied):
        torch.testing.assert_close(logits, whole)


def test_what_gives_no_losses_cannot_be_judged(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported graph computes what a prediction needs."""
    pipe = load(tiny)
    run = type(pipe.runtime).run

    def without(self: Any, batch: Any) -> Any:
        return {name: array for name, array in run(self, batch).items() if name != "losses"}

    monkeypatch.setattr(type(pipe.runtime), "run", without)
    with pytest.raises(UsageError) as caught:
        ws.evaluate(pipe, [{"text": "a good film"}])
    assert caught.value.code == "exam-without-model"
    assert pipe("a [MASK] film").masks  # the healthy twin


# --- training ---------------------------------------------------------------------------------------------------------


def test_an_encoder_that_is_adapted_goes_on_as_a_classifier(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Bare encoder → masked language model → classifier; and a classifier's own head is never taken for a mask's."""
    rows = [{"text": f"a {word} film", "label": word} for word in ("good", "bad") * 8]
    config = ws.TrainConfig(epochs=1, batch_size=8, device="cpu")
    for name, source in (("bare", tiny("bert", "base")), ("classifier", tiny("bert"))):
        adapted = ws.train(source, rows, output=tmp_path / name, task="fill-mask", config=config)
        assert (
            adapted.pipeline.model.cls.predictions.decoder.weight.shape[0] == adapted.pipeline.model.config.vocab_size
        )
    again = ws.load(adapted.path)
    assert again.task.name == "fill-mask"
    embeddings = "embeddings.word_embeddings.weight"
    run = ws.train(adapted.path, rows, output=tmp_path / "c", task="text-classification", config=config)
    assert run.pipeline.task.name == "text-classification"
    moved = run.pipeline.model.base_model.get_parameter(embeddings) - again.model.base_model.get_parameter(embeddings)
    assert moved.abs().max() < 0.05  # it began at the adapted weights


def test_a_trained_head_goes_on_being_trained(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny("bert", "masks")
    config = ws.TrainConfig(max_steps=1, learning_rate=1e-9, device="cpu")
    run = ws.train(folder, [{"text": "a good film"}], output=tmp_path / "run", task="fill-mask", config=config)
    before, after = ws.load(folder).model.state_dict(), run.pipeline.model.state_dict()
    assert max((after[name].float() - before[name].float()).abs().max().item() for name in before) < 1e-6


def test_a_masked_language_model_without_its_head_gets_a_fresh_one(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Checkpoints of sentence-transformers keep the architecture's name, and not the head."""
    folder = copy_of(tiny("bert", "base"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(CheckpointError) as caught:
        ws.load(folder)
    assert caught.value.code == "head-missing"
    config = ws.TrainConfig(max_steps=1, device="cpu")
    run = ws.train(folder, ["a good film"], output=tmp_path / "run", task="fill-mask", config=config)
    assert run.pipeline("a [MASK] film").masks


@pytest.mark.real_data
def test_the_real_encoder_learns_to_guess_the_words_of_reviews(encoder: Path, tmp_path: Path) -> None:
    """Ten steps on reviews: the perplexity of held-out ones, which guessing blindly makes 30,522, falls."""
    if not DATA.exists():
        pytest.skip("../shared/data is absent")
    with (DATA / "reviews" / "train.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, 100)]
    started = time.monotonic()
    run = ws.train(
        encoder,
        [{"text": text} for text in texts[:80]],
        output=tmp_path / "run",
        task="fill-mask",
        config=ws.TrainConfig(max_steps=10, batch_size=8, learning_rate=1e-3, device="cpu"),
    )
    steps = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "grad_norm" in step]
    assert losses[0] > 9.5 and losses[-1] < losses[0] - 1.5
    assert ws.evaluate(run.pipeline, [{"text": text} for text in texts[80:]]).metrics["perplexity"].value < 8000
    assert time.monotonic() - started < 120
    [candidates] = run.pipeline("this movie is [MASK] .").masks
    assert [c["score"] for c in candidates] == sorted((c["score"] for c in candidates), reverse=True)
