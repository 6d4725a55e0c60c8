"""Text is generated as transformers generates it, alone or in company; what is learned is exact."""

from __future__ import annotations

import dataclasses
import gc
import logging
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2Config

import warmstart as ws
from support.damage import copy_of, edit_json
from support.models import CHAT_TEMPLATE, DECODERS, tiny_tokenizer
from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.engine.unpad import is_unpadded, pad
from warmstart.errors import CheckpointError, DataError, UsageError, WarmstartError, Where
from warmstart.rows import Row, read
from warmstart.tasks.class_loss import IGNORED
from warmstart.tasks.decoding import Answer, choose
from warmstart.tasks.generation_options import Generation, cache_bytes_a_token, rows_at_most, with_cache_sizes
from warmstart.tasks.text_generation import TextGeneration
from warmstart.tokenization import Tokenizer as OwnTokenizer

PROMPTS = [
    "I love this film",
    "A dull, tired plot; the worst two hours",
    "The cast",
    "Good, bad, happy, sad: 0123456789 words that are said",
    "LangChain and transformers are fun",
    "x",
]
NEW = {"max_new_tokens": 12}

# What a checkpoint may ask of generating, beside how it is drawn.
SETTINGS: Mapping[str, Any] = {
    "no_repeat_ngram_size": 2,
    "repetition_penalty": 1.3,
    "bad_words_ids": [[7], [9, 11]],
    "sequence_bias": [[[13], 2.0]],
    "suppress_tokens": [20, 21],
    "begin_suppress_tokens": [30, 31],
    "forced_eos_token_id": 2,
    "min_length": 12,
}


def load(tiny: Callable[..., Path], family: str = "llama", **options: Any) -> ws.Pipeline:
    return ws.load(tiny(family, "generation"), options=NEW | options, device="cpu")


def task_of(pipe: ws.Pipeline) -> TextGeneration:
    assert isinstance(pipe.task, TextGeneration)
    return pipe.task


def reference(pipe: ws.Pipeline, prompt: str, **options: Any) -> str:
    """What transformers' own tokenizer and `generate` give for one prompt."""
    inputs = pipe.tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        found = pipe.model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            do_sample=False, pad_token_id=pipe.tokenizer.pad_token_id, **NEW, **options,
        )  # fmt: skip
    return str(pipe.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


# --- as transformers does it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_text_is_that_of_generate_alone_and_in_a_batch(tiny: Callable[..., Path], family: str) -> None:
    pipe = load(tiny, family)
    expected = [reference(pipe, prompt) for prompt in PROMPTS]
    assert [pipe(prompt).generated_text for prompt in PROMPTS] == expected
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == expected
    assert ["".join(pipe.stream(prompt)) for prompt in PROMPTS] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("family", DECODERS)
def test_beams_are_those_of_generate(tiny: Callable[..., Path], family: str) -> None:
    pipe = load(tiny, family, beams=3, length_penalty=0.5)
    expected = [reference(pipe, prompt, num_beams=3, length_penalty=0.5) for prompt in PROMPTS]
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == expected
    with pytest.raises(UsageError) as caught:
        pipe.stream("x")
    assert caught.value.code == "stream-with-beams"


def stored(tiny: Callable[..., Path], tmp_path: Path, family: str, settings: Mapping[str, Any]) -> Path:
    folder = copy_of(tiny(family, "generation"), tmp_path / family)
    edit_json(folder / "generation_config.json", settings)
    return folder


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("beams", [1, 3])
def test_the_checkpoints_settings_hold(tiny: Callable[..., Path], tmp_path: Path, family: str, beams: int) -> None:
    pipe = ws.load(stored(tiny, tmp_path, family, SETTINGS), options=NEW | {"beams": beams}, device="cpu")
    expected = [reference(pipe, prompt, num_beams=beams) for prompt in PROMPTS]
    assert [pipe(prompt).generated_text for prompt in PROMPTS] == expected
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == expected
    assert expected != [prediction.generated_text for prediction in load(tiny, family, beams=beams)(PROMPTS)]
    if beams == 1:
        assert ["".join(pipe.stream(prompt)) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("beams", [1, 2])
def test_padding_is_no_text_for_a_setting(tiny: Callable[..., Path], tmp_path: Path, beams: int) -> None:
    """GPT-2 pads with the token that ends a text, which could not come again if padding were counted."""
    folder = stored(tiny, tmp_path, "gpt2", {"no_repeat_ngram_size": 1})
    end = ws.load(folder, device="cpu").model.config.eos_token_id
    edit_json(folder / "generation_config.json", {"sequence_bias": [[[end], 50.0]], "pad_token_id": end})
    pipe = ws.load(folder, options=NEW | {"beams": beams}, device="cpu")
    object.__setattr__(pipe.task, "tokenizer", dataclasses.replace(pipe.task.tokenizer, pad_id=end))
    assert [prediction.new_tokens for prediction in pipe(PROMPTS)] == [0] * len(PROMPTS)
    pipe.tokenizer.pad_token_id, pipe.tokenizer.padding_side = end, "left"
    inputs = pipe.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    together = pipe.model.generate(**inputs, do_sample=False, num_beams=beams, max_new_tokens=3)
    assert together.shape[1] == inputs["input_ids"].shape[1] + 3  # in transformers it is


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stored_shortest_answer_holds_and_gives_way(
    tiny: Callable[..., Path],
    tmp_path: Path,
    beams: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ending = {"sequence_bias": [[[2], 50.0]], "min_new_tokens": 5}
    folder = stored(tiny, tmp_path, "llama", ending)
    options = NEW | {"beams": beams}
    assert [each.new_tokens for each in ws.load(folder, options=options, device="cpu")(PROMPTS)] == [5] * len(PROMPTS)
    assert ws.load(folder, options=options | {"max_new_tokens": 3}, device="cpu")("x").new_tokens == 3
    edit_json(folder / "generation_config.json", {"min_length": 8}, remove=("min_new_tokens",))
    pipe = ws.load(folder, options=options, device="cpu")
    expected = [max(0, 8 - prediction.tokens) for prediction in pipe(PROMPTS)]
    assert [prediction.new_tokens for prediction in pipe(PROMPTS)] == expected and max(expected) > min(expected) == 0
    chosen = ws.load(folder, options=options | {"min_new_tokens": 7}, device="cpu")
    assert [prediction.new_tokens for prediction in chosen(PROMPTS)] == [7] * len(PROMPTS)
    assert "min_length" not in caplog.text


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_holds_by_itself(tiny: Callable[..., Path], tmp_path: Path, name: str) -> None:
    pipe = ws.load(stored(tiny, tmp_path, "llama", {name: SETTINGS[name]}), options=NEW, device="cpu")
    expected = [reference(pipe, prompt) for prompt in PROMPTS]
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == expected


def test_draws_obey_the_checkpoints_settings(tiny: Callable[..., Path], tmp_path: Path) -> None:
    allowed = [40, 41, 42]
    size = load(tiny).model.config.vocab_size
    others = [token for token in range(size) if token not in allowed]
    settings = {"suppress_tokens": others, "do_sample": True, "temperature": 9.0, "top_k": 1}  # the last two: not ours
    pipe = ws.load(stored(tiny, tmp_path, "llama", settings), options=NEW | {"temperature": 1.0}, device="cpu")
    alone = [pipe(prompt).generated_text for prompt in PROMPTS]
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == alone
    assert ["".join(pipe.stream(prompt)) for prompt in PROMPTS] == alone
    said = set("".join(alone))
    assert len(said) > 1 and said <= set(pipe.tokenizer.decode(allowed))


@pytest.mark.parametrize("beams", [1, 2])
def test_settings_that_are_not_followed_are_said(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, beams: int
) -> None:
    others = {"stop_strings": ["a"], "guidance_scale": 2.0, "num_beam_groups": 1, "return_dict_in_generate": True}
    folder = stored(tiny, tmp_path, "llama", others)
    with caplog.at_level(logging.WARNING, "warmstart"):
        pipe = ws.load(folder, options=NEW | {"beams": beams}, device="cpu")
    assert "guidance_scale=2.0, stop_strings=['a']" in caplog.text and "num_beam_groups" not in caplog.text
    assert pipe(PROMPTS) == load(tiny, beams=beams)(PROMPTS)


def test_a_conversation_is_written_as_the_template_says(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    messages = [{"role": "user", "content": "is it fun"}, {"role": "assistant", "content": "so so"}]
    messages.append({"role": "user", "content": "why"})
    [feature] = task_of(pipe).encode([Row({"messages": messages})])
    expected = pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert feature.inputs["input_ids"].tolist() == list(getattr(expected, "input_ids", expected))
    assert pipe({"messages": messages}).generated_text == "".join(pipe.stream({"messages": messages}))


# --- drawing --------------------------------------------------------------------------------------------------------


def test_what_is_drawn_is_the_rows_own(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, temperature=1.0)
    alone = [pipe(prompt).generated_text for prompt in PROMPTS]
    assert [prediction.generated_text for prediction in pipe(PROMPTS)] == alone
    assert [prediction.generated_text for prediction in pipe(PROMPTS[::-1])] == alone[::-1]
    assert alone != [prediction.generated_text for prediction in load(tiny)(PROMPTS)]
    assert alone != [prediction.generated_text for prediction in load(tiny, temperature=1.0, seed=1)(PROMPTS)]


def test_a_rows_own_seed_wins(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, temperature=1.0)
    texts = [p.generated_text for p in pipe([{"prompt": "x", "seed": seed} for seed in (0, 1, 2, 0)])]
    assert texts[0] == texts[3] == pipe("x").generated_text
    assert len(set(texts)) == 3
    with pytest.raises(DataError) as caught:
        pipe([{"prompt": "x", "seed": "one"}])
    assert (caught.value.code, caught.value.where.field) == ("field-not-seed", "seed")


@given(st.integers(1, 6), st.floats(0.05, 1.0), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_only_likely_tokens_are_drawn(top_k: int, top_p: float, seed: int) -> None:
    how = Generation(max_new_tokens=1, temperature=0.7, top_k=top_k, top_p=top_p)
    logits = torch.tensor([[2.0, -1.0, 0.5, 1.9, -3.0, 0.0]])
    answer = Answer(how, most=1, key="k", seed=seed, decode=str)
    [token] = choose(logits, [answer], how).tolist()
    probabilities = (logits[0] / 0.7).softmax(0)
    order = probabilities.argsort(descending=True).tolist()[:top_k]
    whole = sum(probabilities[i].item() for i in order)
    allowed, before = set[int](), 0.0
    for i in order:  # nucleus: a token counts while those before it have not yet reached top_p
        if before < top_p + 1e-9:
            allowed.add(i)
        before += probabilities[i].item() / whole
    assert token in allowed


def test_draws_follow_the_probabilities() -> None:
    how = Generation(max_new_tokens=1, temperature=1.0)
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(4000, 3)
    answers = [Answer(how, most=1, key=str(i), seed=0, decode=str) for i in range(4000)]
    shares = torch.bincount(choose(logits, answers, how), minlength=3) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.025, rtol=0)


# --- where an answer ends -------------------------------------------------------------------------------------------


def test_a_stop_text_ends_the_answer_before_it(tiny: Callable[..., Path]) -> None:
    for prompt in PROMPTS:
        whole = load(tiny)(prompt)
        stop = whole.generated_text[3:5]
        pipe = load(tiny, stop=[stop, "never said"])
        found = pipe(prompt)
        assert found.generated_text == whole.generated_text[: whole.generated_text.index(stop)]
        assert (found.finish_reason, whole.finish_reason) == ("stop", "length")
        assert found.new_tokens <= whole.new_tokens == 12
        pieces = list(pipe.stream(prompt))
        assert "".join(pieces) == found.generated_text  # no piece shows the beginning of what is cut off


def test_a_token_that_ends_the_text_ends_the_answer(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("llama", "generation"), tmp_path / "ends")
    pipe = ws.load(folder, options=NEW, device="cpu")
    tokens = pipe.runtime.run(collate(list(pipe.task.encode([Row({"prompt": "x"})])), pipe.task.pads))["tokens"][0]
    third = int(tokens[2])
    edit_json(folder / "generation_config.json", {"eos_token_id": [third, 2]})
    found = ws.load(folder, options=NEW, device="cpu")("x")
    assert (found.finish_reason, found.new_tokens) == ("end", tokens.tolist().index(third))
    assert ws.load(folder, options=NEW | {"min_new_tokens": 8}, device="cpu")("x").new_tokens >= 8
    (folder / "generation_config.json").write_text("[1")
    with pytest.raises(CheckpointError) as caught:
        ws.load(folder, device="cpu")
    assert caught.value.code == "json-invalid"


def test_a_stop_that_is_a_special_token_ends_the_answer_as_a_token(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """No text shows it. What is learned ends as before: with the checkpoint's own end."""
    folder = stored(tiny, tmp_path, "llama", {"sequence_bias": [[[4], 50.0]]})
    token = "<mask>"
    plain = ws.load(folder, options=NEW, device="cpu")
    assert plain.tokenizer.convert_ids_to_tokens(4) == token
    assert (plain("x").generated_text, plain("x").finish_reason) == ("", "length")
    for beams, stop in ((1, token), (1, ["never said", token]), (2, token)):
        pipe = ws.load(folder, options=NEW | {"stop": stop, "beams": beams}, device="cpu")
        assert (pipe("x").new_tokens, pipe("x").finish_reason) == (0, "end")
        assert task_of(pipe).end_ids == task_of(plain).end_ids
    for stop in ("\n" + token, token + token):
        with pytest.raises(UsageError) as caught:
            ws.load(folder, options=NEW | {"stop": ["never said", stop]}, device="cpu")
        assert (caught.value.code, caught.value.value) == ("option-value", stop)


def test_options_that_contradict_each_other_are_refused(tiny: Callable[..., Path]) -> None:
    conflicts: list[dict[str, Any]] = [
        {"beams": 2, "temperature": 1.0}, {"beams": 2, "stop": "x"}, {"top_k": 3}, {"top_p": 0.5},
        {"min_new_tokens": 20},
    ]  # fmt: skip
    for options in conflicts:
        with pytest.raises(UsageError) as caught:
            load(tiny, **options)
        assert caught.value.code == "option-conflict"


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_long_prompt_loses_its_beginning_or_is_refused(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    long = "good " * 200 + "I love this film"
    pipe = load(tiny, max_length=40)
    with caplog.at_level(logging.WARNING, "warmstart"):
        found = pipe(long)
    assert (found.truncated, found.tokens) == (True, task_of(pipe).prompt_limit)
    assert "were longer than 30 tokens and were cut; long_text=error refuses" in caplog.text
    [feature] = task_of(pipe).encode([Row({"prompt": long})])
    text = pipe.tokenizer.decode(feature.inputs["input_ids"])
    assert text.startswith("<s>") and text.endswith("I love this film")
    with pytest.raises(DataError) as caught:
        load(tiny, max_length=40, long_text="error")([PROMPTS[0], long])
    assert (caught.value.code, caught.value.where.row) == ("prompt-too-long", 1)
    shortened = load(tiny, max_length=40, max_new_tokens=39)("good " * 27)
    assert "answer-shortened" in shortened.flags and shortened.new_tokens < 39


def held_a_token(model: Any) -> int:
    """Bytes of a real cache for each of four tokens."""
    cache = model(input_ids=torch.tensor([[3, 4, 5, 6]]), use_cache=True).past_key_values
    assert isinstance(cache, DynamicCache)
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values)) // 4


@pytest.mark.parametrize("family", DECODERS)
def test_the_size_of_the_cache_is_known(tiny: Callable[..., Path], family: str) -> None:
    pipe = load(tiny, family)
    assert task_of(pipe).bytes_a_token == held_a_token(pipe.model) > 0


@pytest.mark.parametrize(
    ("kind", "sizes", "left_out"),
    [
        ("gpt2", {"n_embd": 24}, ("n_layer", "n_head")),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}, ()),
        ("llama", {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}, ("num_attention_heads",)),
        ("qwen2", {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2}, ("num_key_value_heads",)),
        ("gemma", {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}, ("head_dim",)),
        ("gpt_neox", {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}, ("num_hidden_layers",)),
    ],
)
def test_sizes_that_a_config_leaves_out_are_those_of_its_class(
    kind: str, sizes: dict[str, Any], left_out: tuple[str, ...]
) -> None:
    """A model's cache against what the file alone says, with fields that the file leaves to its class."""
    config = AutoConfig.for_model(kind, **sizes, vocab_size=300)
    model = AutoModelForCausalLM.from_config(config).eval()
    written = {name: value for name, value in config.to_diff_dict().items() if name not in left_out}
    with torch.inference_mode():
        held = held_a_token(model)
    assert cache_bytes_a_token(with_cache_sizes(written, config.to_dict())) == held > 0
    nested = {"model_type": "some_vision", "text_config": written}
    assert cache_bytes_a_token(with_cache_sizes(nested, {"text_config": config.to_dict()})) == held


def test_a_loaded_checkpoint_knows_the_sizes_that_its_file_leaves_out(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of(tiny("gpt2", "generation"), tmp_path / "checkpoint")
    config = GPT2Config.from_pretrained(folder)
    config.n_embd, config.n_layer, config.n_head = 24, GPT2Config().n_layer, GPT2Config().n_head
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    edit_json(folder / "config.json", {}, remove=("n_layer", "n_head"))
    pipe = ws.load(folder, options=NEW, device="cpu")
    assert task_of(pipe).bytes_a_token == held_a_token(pipe.model) == 2 * 4 * 12 * 24


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "some_new"},
        {"model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"qk_nope_head_dim": 128, "kv_lora_rank": 512},
        {"model_type": "some_vision", "text_config": {"num_hidden_layers": 2}},
    ],
)
def test_a_cache_of_no_known_size_takes_one_row_at_a_time(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert cache_bytes_a_token(with_cache_sizes(config, config)) == 0
    assert f"the config of this {config['model_type']} checkpoint does not say" in caplog.text
    assert "one at a time" in caplog.text
    assert rows_at_most(9, Generation(max_new_tokens=3), bytes_a_token=0, megabytes=2048) == 1


def test_the_cache_is_bounded(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    task = task_of(pipe)
    object.__setattr__(task, "cache_megabytes", 1)
    object.__setattr__(task, "bytes_a_token", (1 << 20) // 40)  # so that 40 tokens fill it
    sizes = []
    run = type(pipe.runtime).run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pipe.runtime), "run", lambda self, batch: (sizes.append(len(batch)), run(self, batch))[1])
        assert [p.generated_text for p in pipe(["x"] * 5)] == [pipe("x").generated_text] * 5
    assert max(sizes) == task.rows_at_most(2) < 5
    with pytest.raises(DataError) as caught:
        pipe(["x", "good words " * 20])
    assert (caught.value.code, caught.value.where.row) == ("cache-too-large", 1)
    assert "MB" in caught.value.what and "cache_megabytes=" in caught.value.fix


@pytest.mark.parametrize("beams", [1, 2])
def test_a_model_that_answers_with_nan_gives_no_text(tiny: Callable[..., Path], beams: int) -> None:
    pipe = load(tiny, beams=beams)
    with torch.no_grad():
        pipe.model.lm_head.weight.fill_(float("nan"))
    for call in [lambda: pipe(["x"]), lambda: list(pipe.stream("x"))][: 3 - beams]:
        with pytest.raises(WarmstartError) as caught:
            call()
        assert caught.value.code == "output-not-a-number"


def test_nan_in_a_search_loses_its_own_row_alone(tiny: Callable[..., Path]) -> None:
    """In a batch of rows of several lengths, the one whose prompt holds a token that the model knows as NaN."""
    pipe = load(tiny, beams=2)
    token = pipe.tokenizer("#", add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        pipe.model.model.embed_tokens.weight[token] = float("nan")
        pipe.model.lm_head.weight[token] = 0  # so that nobody says it
    assert "#" not in "".join(prediction.generated_text for prediction in pipe(["x", "good film", "y"]))
    with pytest.raises(WarmstartError) as caught:
        pipe(["x", "good film", "#", "y"])
    assert (caught.value.code, caught.value.where.row) == ("output-not-a-number", 2)


# --- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_ends_with_the_prediction(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    stream = pipe.stream(PROMPTS[0])
    pieces = list(stream)
    assert len(pieces) > 3 and stream.text == "".join(pieces)
    assert stream.prediction == pipe(PROMPTS[0])
    assert list(stream) == []
    with pytest.raises(UsageError) as caught:
        ws.load(tiny("bert"), device="cpu").stream("a text")
    assert caught.value.code == "stream-unsupported"


def test_a_stream_knows_at_once_what_is_odd_about_its_prompt(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, max_length=40)
    for prompt in ("good " * 200 + "</s>", "x", " "):
        predicted = pipe(prompt)
        with pipe.stream(prompt) as stream:
            assert (stream.truncated, stream.flags) == (predicted.truncated, predicted.flags)
        assert stream.prediction is None
    assert not predicted.truncated and predicted.flags == ("empty-text",)


def test_half_a_character_waits_for_its_other_half() -> None:
    how = Generation(max_new_tokens=9, stop=("STOP",))
    said = ["caf", "\N{REPLACEMENT CHARACTER}", "é ST", "AR ST", "OP or"]
    answer = Answer(how, most=9, key="", seed=0, decode=lambda tokens: _joined(said[: len(tokens)]))
    seen = []
    for token in range(5):
        answer.add(token)
        seen.append(answer.settled)
    assert seen == ["caf", "caf", "café ", "café STAR ", "café STAR "]
    assert (answer.finish, answer.text) == ("stop", "café STAR ")


def _joined(pieces: list[str]) -> str:
    """A half character is replaced once its other half has come."""
    text = "".join(pieces)
    return text[:-1].replace("\N{REPLACEMENT CHARACTER}", "") + text[-1:]


BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
WORDS = ["\u2581the", "\u2581", "cast", "\u2581is", "<s>", "</s>", "!", "\u00e9"]


def tokens_with_bytes() -> Tokenizer:
    """Decodes as Llama 2 does: bytes for what has no token, "\u2581" for spaces, the first of which is taken away."""
    vocabulary = {**BYTES, **{word: 256 + i for i, word in enumerate(WORDS)}}
    rust = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    rust.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens(["<s>", "</s>"])
    return rust


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_growing_text_is_what_all_its_tokens_say(data: st.DataObject) -> None:
    """Whichever way a tokenizer decodes, and whatever it is given: half characters, special tokens, spaces."""
    rust = data.draw(st.sampled_from([tokens_with_bytes(), tiny_tokenizer("gpt2").backend_tokenizer]))
    words = [[256 + i] for i in range(len(WORDS))] + [list(text.encode()) for text in "\u20ac\U0001f642"]
    odd = (st.lists(st.integers(0, 255), max_size=2), st.just([257] * 9), st.just([260] * 20))
    odd = (*odd, st.just(list(("\U0001f642" * 7).encode())))  # a run of bytes is one text or none
    some = st.one_of(st.sampled_from(words), *odd)
    tokens = [token for part in data.draw(st.lists(some, min_size=20, max_size=60)) for token in part]
    tokens = [token % rust.get_vocab_size() for token in tokens]

    def decode(ids: list[int]) -> str:
        return str(rust.decode(ids, skip_special_tokens=True))

    together = OwnTokenizer.from_json(rust.to_str(), limit=999).together
    answer = Answer(Generation(max_new_tokens=999), most=999, key="", seed=0, decode=decode, together=together)
    step = data.draw(st.integers(1, 3))
    for end, token in enumerate(tokens, start=1):
        answer.add(token)
        if end % step == 0:
            assert decode(tokens).startswith(answer.settled)
            assert answer.text == decode(tokens[:end])


@pytest.mark.parametrize(
    "tokens",
    [[256, 0x0A, 0xF0, 0x9F], [256, 0x0A, 0xF0, 257, 257], [256, 0x0A, 260, 0xF0, 258], [0x0A, 0xF0, 256, 0x0A, 0x0A]],
)
def test_a_run_of_bytes_waits_for_its_end(tokens: list[int]) -> None:
    """A byte that is no character makes all bytes beside it none, those before it too; special tokens part no run."""
    tokenizer = OwnTokenizer.from_json(tokens_with_bytes().to_str(), limit=99)
    assert tokenizer.together == {*range(256), 260, 261}
    how = Generation(max_new_tokens=len(tokens))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.rust.decode(ids, skip_special_tokens=True))

    for reads in (1, 2):  # whoever reads it now and then, finds the same
        answer = Answer(how, most=len(tokens), key="", seed=0, decode=decode, together=tokenizer.together)
        for end, token in enumerate(tokens, start=1):
            answer.add(token)
            if end % reads == 0:
                assert decode(tokens).startswith(answer.settled)
        assert answer.settled == answer.text == decode(tokens)


def test_bytes_of_other_tokenizers_wait_for_nothing() -> None:
    """A token that is spelled as a byte is one where the decoder says so."""
    rust = tokens_with_bytes()
    assert OwnTokenizer.from_json(tiny_tokenizer("gpt2").backend_tokenizer.to_str(), limit=99).together == frozenset()
    rust.decoder = decoders.ByteFallback()
    assert OwnTokenizer.from_json(rust.to_str(), limit=99).together
    rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    assert OwnTokenizer.from_json(rust.to_str(), limit=99).together == frozenset()


def test_a_long_answer_is_not_decoded_anew_for_each_token() -> None:
    rust = tiny_tokenizer("gpt2").backend_tokenizer
    decoded = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return str(rust.decode(ids, skip_special_tokens=True))

    how = Generation(max_new_tokens=999, stop=("never said",))
    answer = Answer(how, most=999, key="", seed=0, decode=decode)
    for token in rust.encode("the cast is great " * 50).ids:
        answer.add(token)
        assert answer.settled
    assert len(answer.tokens) > 100 and max(decoded) <= 17


@pytest.mark.parametrize("way", ["close", "drop"])
def test_a_stream_that_is_closed_or_dropped_lets_go_of_its_cache(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    caches: list[weakref.ref[Any]] = []
    made = DynamicCache.__init__
    monkeypatch.setattr(
        DynamicCache, "__init__", lambda self, *a, **k: (made(self, *a, **k), caches.append(weakref.ref(self)))[0]
    )
    pipe = load(tiny)
    pipe.model.train()
    stream = pipe.stream(PROMPTS[0])
    first = next(stream)
    assert pipe.model.training and not torch.is_inference_mode_enabled()  # between tokens, the model is ours again
    gc.collect()
    assert [ref for ref in caches if ref() is not None]
    gc.disable()
    try:
        if way == "drop":
            del stream
            assert not [ref for ref in caches if ref() is not None]
            return
        stream.close()
        assert not [ref for ref in caches if ref() is not None]
    finally:
        gc.enable()
    assert stream.text == first and stream.prediction is None and list(stream) == []


def test_a_stream_closed_after_its_last_piece_has_no_prediction(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, max_new_tokens=1)
    stream = pipe.stream(PROMPTS[0])
    assert next(stream) == pipe(PROMPTS[0]).generated_text
    stream.close()
    assert list(stream) == [] and stream.prediction is None


# --- learning -------------------------------------------------------------------------------------------------------


def conversations() -> list[Row]:
    """20 of them, of one to three turns."""
    words = " ".join(PROMPTS).split()
    return [
        Row(
            {
                "messages": [
                    {"role": role, "content": " ".join(words[(i + turn + k) % 25 :][: 1 + (i + k) % 3])}
                    for turn in range(1 + i % 3)
                    for k, role in enumerate(("user", "assistant"))
                ]
            }
        )
        for i in range(20)
    ]


def by_hand(pipe: ws.Pipeline, messages: list[dict[str, str]], after: str = "", head: str = "") -> list[float]:
    """The losses of the assistant's tokens: the template spelled out, ids and positions counted one by one. `after`:
    what it writes after the end of each message, `head`: before the first."""
    ids: list[int] = pipe.tokenizer(head, add_special_tokens=False)["input_ids"] if head else []
    learned: list[bool] = [False] * len(ids)
    for message in messages:
        given, said = f"<s>{message['role']}: ", f"{message['content']}</s>"
        for text, counts in ((given, False), (said, message["role"] == "assistant"), (after, False)):
            more = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += more
            learned += [counts] * len(more)
    with torch.inference_mode():
        logits = pipe.model(torch.tensor([ids])).logits[0]
    logs = logits.log_softmax(-1)
    return [-logs[i - 1, token].item() for i, token in enumerate(ids) if learned[i]]


@pytest.mark.parametrize("after", ["", "\n", "\n\n"])
def test_only_completions_are_learned(tiny: Callable[..., Path], tmp_path: Path, after: str) -> None:
    """Up to the token that ends an answer, whatever the template writes after that."""
    pipe = talking(tiny, tmp_path, CHAT_TEMPLATE.replace("</s>", "</s>{{ '" + after.replace("\n", "\\n") + "' }}"))
    rows = conversations()
    expected = [by_hand(pipe, row["messages"], after) for row in rows]
    tensors = to_tensors(collate(list(pipe.task.encode(rows, train=True)), pipe.task.pads), "cpu")
    with torch.inference_mode():
        losses, weights = pipe.task.loss(pipe.task.forward(pipe.model, tensors), tensors)
    assert weights.tolist() == [len(each) for each in expected]
    np.testing.assert_allclose(losses.numpy(), [np.mean(each) for each in expected], atol=1e-5)
    result = ws.evaluate(pipe, rows)
    np.testing.assert_allclose(result.per_example["loss"], [np.mean(each) for each in expected], atol=1e-5)
    together = float(np.exp(np.mean([loss for each in expected for loss in each])))
    assert result.metrics["perplexity"].value == pytest.approx(together, rel=1e-5)


def talking(tiny: Callable[..., Path], tmp_path: Path, template: str) -> ws.Pipeline:
    """A checkpoint with another chat template."""
    folder = copy_of(tiny("llama", "generation"), tmp_path / "checkpoint")
    (folder / "chat_template.jinja").write_text(template)
    return ws.load(folder, options=NEW, device="cpu")


def learned_text(pipe: ws.Pipeline, messages: list[dict[str, str]]) -> str:
    [feature] = pipe.task.encode([Row({"messages": messages})], train=True)
    labels = feature.targets["labels"]
    assert (labels[labels != IGNORED] == feature.inputs["input_ids"][labels != IGNORED]).all()
    return str(pipe.tokenizer.decode(labels[labels != IGNORED]))


def test_of_a_first_answer_only_the_answer_is_learned(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A conversation that the assistant begins: what the template writes before it is no answer."""
    head = "<s>system: be kind</s>\n"
    begun = "{% if messages[0]['role'] != 'system' %}{{ '" + head.replace("\n", "\\n") + "' }}{% endif %}"
    pipe = talking(tiny, tmp_path, begun + CHAT_TEMPLATE.replace("</s>", "</s>{{ '\\n' }}"))
    hello = {"role": "assistant", "content": "hello"}
    for rest in ([], [{"role": "user", "content": "is it"}, {"role": "assistant", "content": "fun"}]):
        messages = [hello, *rest]
        assert learned_text(pipe, messages) == "hello</s>" + ("fun</s>" if rest else "")
        result = ws.evaluate(pipe, [Row({"messages": messages})])
        expected = by_hand(pipe, messages, "\n", head)
        np.testing.assert_allclose(result.per_example["loss"], [np.mean(expected)], atol=1e-5)
    assert learned_text(pipe, [{"role": "assistant", "content": ""}]) == "</s>"


def test_an_answer_without_an_end_is_learned_whole(tiny: Callable[..., Path], tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\\n' }}{% endfor %}"
    pipe = talking(tiny, tmp_path, plain + "{% if add_generation_prompt %}assistant: {% endif %}")
    asked = [{"role": "user", "content": "is it"}, {"role": "assistant", "content": "fun </s> ok"}]
    assert learned_text(pipe, asked) == "fun </s> ok\n"  # the token was spelled out: it ends nothing
    pipe = talking(tiny, tmp_path / "spelled", CHAT_TEMPLATE)
    assert learned_text(pipe, asked) == "fun </s> ok</s>"


def test_templates_may_ask_for_tools(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """`tools` and `documents` are none, as transformers gives them, and not undefined."""
    asking = "{% if tools is not none or documents is not none %}{{ raise_exception('tools') }}{% endif %}"
    pipe = talking(tiny, tmp_path, asking + CHAT_TEMPLATE)
    assert pipe({"messages": [{"role": "user", "content": "x"}]}).tokens > 0


@pytest.mark.parametrize("family", DECODERS)
def test_packed_is_row_by_row(tiny: Callable[..., Path], family: str) -> None:
    """No attention across rows: a batch without its padding gives each row's own losses and the same gradients."""
    pipe = load(tiny, family)
    assert is_unpadded(pipe.model)
    rows = [Row({"prompt": text, "completion": text[::-1]}) for text in PROMPTS]
    features = list(pipe.task.encode(rows, train=True))

    def losses_and_gradient(groups: list[Any]) -> tuple[list[float], torch.Tensor]:
        pipe.model.zero_grad()
        found: list[float] = []
        for group in groups:
            tensors = to_tensors(collate(group, pipe.task.pads), "cpu")
            losses, weights = pipe.task.loss(pipe.task.forward(pipe.model, tensors), tensors)
            (losses * weights).sum().backward()
            found += losses.tolist()
        return found, torch.cat([p.grad.ravel() for p in pipe.model.parameters() if p.grad is not None])

    packed, gradient = losses_and_gradient([features])
    alone, summed = losses_and_gradient([[feature] for feature in features])
    pad(pipe.model)
    padded, stock = losses_and_gradient([features])
    np.testing.assert_allclose(packed, alone, atol=1e-5)
    np.testing.assert_allclose(packed, padded, atol=1e-5)
    torch.testing.assert_close(gradient, summed, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradient, stock, atol=1e-5, rtol=1e-4)


def test_plain_text_is_learned_whole_in_parts(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny, max_length=24)
    text = "good words that are said, happy and sad " * 6
    features = list(pipe.task.encode([Row({"prompt": text})], train=True))
    ids = np.concatenate([feature.inputs["input_ids"] for feature in features])
    assert ids.tolist() == pipe.tokenizer(text)["input_ids"]
    assert len(features) > 1 and all(feature.length <= 24 for feature in features)
    assert all((feature.targets["labels"][1:] != IGNORED).all() for feature in features)
    [whole] = pipe.task.encode([Row({"prompt": text, "completion": "yes"})], train=True)
    assert whole.length == 24 and whole.meta["truncated"]
    assert whole.inputs["input_ids"][-1] == pipe.tokenizer.eos_token_id


def test_rows_with_nothing_to_learn_are_left_out_and_said(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = load(tiny, "gpt2")
    with caplog.at_level(logging.WARNING, "warmstart"):
        features = list(pipe.task.encode([Row({"prompt": "x"}), Row({"prompt": "good words"})], train=True))
    assert {feature.row for feature in features} == {1}
    assert "1 of 2 rows" in caplog.text
    with pytest.raises(DataError) as caught:
        list(pipe.task.encode([Row({"messages": [{"role": "user", "content": "x"}]})], train=True))
    assert caught.value.code in ("messages-without-answer", "chat-template-missing")


@pytest.mark.parametrize("kind", ["completion", "messages"])
def test_rows_that_are_cut_in_training_are_said_once_or_refused(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    pipe = load(tiny, max_length=24)

    def row(prompt: str, answer: str) -> Row:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return Row({"messages": turns} if kind == "messages" else {"prompt": prompt, "completion": answer})

    rows = [row("x", "yes"), row("good " * 40, "yes"), row("x", "good " * 40), row("x", "no")]
    rows = [Row(each, Where(source="rows.jsonl", line=i + 1)) for i, each in enumerate(rows)]
    said = "2 of 4 rows are longer than 24 tokens and lose their beginning, 1 of them some of what was to be learned"
    with caplog.at_level(logging.WARNING, "warmstart"):
        features = list(pipe.task.encode(rows, train=True))
    assert [feature.meta["truncated"] for feature in features] == [False, True, True, False]
    [message] = caplog.messages
    assert message.startswith(said) and "rows.jsonl:2" in message and "long_text=error" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING, "warmstart"):
        ws.evaluate(pipe, rows)
    assert [message.startswith(said) for message in caplog.messages] == [True]
    with pytest.raises(DataError) as caught:
        ws.evaluate(load(tiny, max_length=24, long_text="error"), rows)
    assert (caught.value.code, caught.value.where.line) == ("text-too-long", 2)


def test_many_rows_are_encoded_as_one_by_one(tiny: Callable[..., Path]) -> None:
    """They are encoded in blocks, of which a row may be of any kind."""
    task = load(tiny).task
    kinds: list[dict[str, Any]] = [
        {"prompt": "good words"}, {"prompt": "The cast", "completion": " is \ud800 <s> great"},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]},
    ]  # fmt: skip
    rows = [Row(kinds[i * 7 % 3]) for i in range(300)]
    alone = {i: next(task.encode([Row(kind)], train=True)) for i, kind in enumerate(kinds)}
    for i, feature in enumerate(task.encode(rows, train=True)):
        expected = alone[i * 7 % 3]
        np.testing.assert_array_equal(feature.inputs["input_ids"], expected.inputs["input_ids"])
        np.testing.assert_array_equal(feature.targets["labels"], expected.targets["labels"])
        assert (feature.row, feature.meta) == (i, expected.meta)
    assert alone[1].meta["flags"] == ("special-tokens-as-text", "surrogates-replaced")


def test_a_row_is_a_conversation_or_a_text(tiny: Callable[..., Path]) -> None:
    pipe = load(tiny)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "yes"}]
    for name in ("prompt", "completion"):
        row = {"messages": messages, name: "good"}
        with pytest.raises(DataError) as caught:
            ws.evaluate(pipe, [{"messages": messages}, row])
        assert (caught.value.code, caught.value.where.row) == ("messages-and-text", 1)
        assert "'messages'" in caught.value.what and repr(name) in caught.value.what
    with pytest.raises(DataError) as caught:
        pipe({"messages": messages, "prompt": "good"})
    assert caught.value.code == "messages-and-text"
    assert pipe({"messages": messages[:1], "prompt": None}) == pipe({"messages": messages[:1]})


def test_completions_without_an_end_are_said(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(tiny("llama", "generation"), tmp_path / "endless")
    for name in ("generation_config.json", "config.json"):
        edit_json(folder / name, {}, remove=("eos_token_id",))
    task = ws.load(folder, options=NEW, device="cpu").task
    rows = [Row({"prompt": "good", "completion": "words"})] * 3
    for some, count in ((rows, 1), ([Row({"prompt": "good words"})], 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "warmstart"):
            list(task.encode(some, train=True))
        assert [("learned without an end" in message) for message in caplog.messages] == [True] * count


def test_a_seed_may_stand_in_a_csv_file(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pipe = load(tiny, temperature=1.0)
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,seed\nx,1\nx, 2\nx,\nx,1\n", encoding="utf-8")
    found = [each.generated_text for each in pipe.predict_rows(read(path, fields=TextGeneration.fields))]
    assert found == [each.generated_text for each in pipe([{"prompt": "x", "seed": n} for n in (1, 2, None, 1)])]
    for cell in ("-1", "one", "1.5"):
        path.write_text(f"prompt,seed\nx,1\nx,{cell}\n", encoding="utf-8")
        with pytest.raises(DataError) as caught:
            list(read(path, fields=TextGeneration.fields))
        assert (caught.value.code, caught.value.where.line, caught.value.where.field) == ("field-not-whole", 3, "seed")


def test_messages_need_a_template(tiny: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tiny, "gpt2")({"messages": [{"role": "user", "content": "x"}]})
    assert caught.value.code == "chat-template-missing"


@pytest.mark.parametrize(("family", "share"), [("llama", 0.25), ("gpt2", 0.8)])
def test_adapters_learn_completions_and_end_in_plain_weights(
    tiny: Callable[..., Path], tmp_path: Path, family: str, share: float
) -> None:
    """LoRA: what is trained on prompts with completions generates, merged, reloaded, and in plain transformers."""
    rows = [{"prompt": f"The film {i} was", "completion": " good and fun"} for i in range(16)]
    config = ws.TrainConfig(epochs=6, batch_size=4, learning_rate=3e-2, lora=ws.LoRA(rank=4), device="cpu")
    run = ws.train(tiny(family, "generation"), rows, output=tmp_path / "run", task="text-generation", config=config)
    first, last = (ws.evaluate(pipe, rows).metrics["perplexity"].value for pipe in (load(tiny, family), run.pipeline))
    assert last < share * first
    reloaded = ws.load(run.path, options=NEW, device="cpu")
    expected = [reference(reloaded, str(row["prompt"])) for row in rows]
    assert [prediction.generated_text for prediction in reloaded([row["prompt"] for row in rows])] == expected
    assert expected != [reference(load(tiny, family), str(row["prompt"])) for row in rows]


def test_weights_are_exported_and_judged_by_losses_a_graph_is_refused(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    pipe = load(tiny)
    rows = [{"prompt": text} for text in PROMPTS]
    few = ws.Tolerance(rows=len(rows))
    result = ws.export(pipe, tmp_path / "out", format="safetensors", data=rows, tolerance=few)
    assert result.parity.agreement == 1 and result.parity.difference < 1e-5
    assert ws.load(tmp_path / "out", options=NEW, device="cpu")(PROMPTS) == pipe(PROMPTS)
    with pytest.raises(UsageError) as caught:
        ws.export(pipe, tmp_path / "graph", format="onnx", data=rows, tolerance=few)
    assert caught.value.code == "export-unsupported" and not (tmp_path / "graph").exists()
