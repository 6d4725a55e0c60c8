"""Catalogue C16-C20: config.json as data from a stranger."""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.damage import copy_of, edit_json, refused
from warmstart.checkpoints import load_config, load_model, load_tokenizer, verify
from warmstart.errors import CheckpointError

CLASSIFICATION = "AutoModelForSequenceClassification"


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).labels == ("NEGATIVE", "POSITIVE")  # the healthy twin of every test here
    return copy


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "json-invalid"),
        (b"not json", "json-invalid"),
        (b'{"model_type": "bert"', "json-invalid"),
        (b'["bert"]', "json-invalid"),
        (b'{"model_type": "\xff\xfe"}', "json-invalid"),
        (b'{"a": ' + b"9" * 5000 + b"}", "json-invalid"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json-too-deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json-too-deep"),
        (b'{"model_type": "bert", "model_type": "gpt2"}', "json-duplicate-key"),
        (b'{"a": {"b": 1, "b": 2}}', "json-duplicate-key"),
    ],
)
def test_c16_config_is_not_plain_json(folder: Path, content: bytes, code: str) -> None:
    (folder / "config.json").write_bytes(content)
    with refused(code, "config.json"):
        verify(folder)


def test_c16_config_of_1_gb_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 30)  # sparse: takes no space
    tracemalloc.start()
    with refused("file-too-large", "config.json"):
        verify(folder)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("content", [b'{"a": "' + b'\\"' * 2_000_000, b'"' * 2_000_001, b"{" + b'"\\\\' * 1_000_000])
def test_c16_time_is_linear(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with refused("json-invalid", "config.json"):
        verify(folder)


def test_c16_twin_byte_order_mark_and_brackets_in_strings(folder: Path) -> None:
    edit_json(folder / "config.json", {"id2label": {"0": "[" * 200, "1": '\\"{'}, "label2id": None})
    content = (folder / "config.json").read_bytes()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert verify(folder).labels == ("[" * 200, '\\"{')


def test_c17_unknown_model_type_names_the_nearest(folder: Path) -> None:
    edit_json(folder / "config.json", {"model_type": "distilbret"})
    with refused("model-type-unknown", "config.json", seconds=5) as caught:
        load_config(verify(folder))
    assert "distilbert" in caught.value.fix
    assert "pip install" in caught.value.fix
    edit_json(folder / "config.json", {"model_type": "bert"})
    assert load_config(verify(folder)).model_type == "bert"


@pytest.mark.parametrize("value", [None, 7, "", "../bert", "a" * 100, ["bert"]])
def test_c17_model_type_is_not_a_name(folder: Path, value: object) -> None:
    edit_json(folder / "config.json", {"model_type": value})
    with refused("config-invalid", "model_type"):
        verify(folder)


def test_c18_auto_map_code_is_never_imported(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    marker = tmp_path / "owned"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    auto_map = {
        "AutoConfig": "modeling_evil.Config",
        CLASSIFICATION: "modeling_evil.Model",
        "AutoTokenizer": ["modeling_evil.Tokenizer", None],
    }
    edit_json(folder / "config.json", {"auto_map": auto_map})
    edit_json(folder / "tokenizer_config.json", {"auto_map": auto_map, "tokenizer_class": "EvilTokenizer"})
    verified = verify(folder)
    assert any("auto_map" in finding for finding in verified.findings)
    assert any("modeling_evil.py" in finding for finding in verified.findings)
    assert any("auto_map" in record.getMessage() for record in caplog.records)
    model = load_model(verified, auto_class=CLASSIFICATION)
    tokenizer = load_tokenizer(verified)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert tokenizer("warm")["input_ids"]
    assert not marker.exists()
    assert "modeling_evil" not in sys.modules


HOSTILE_KEYS: dict[str, Any] = {
    "_attn_implementation_internal": "kernels-community/evil",
    "_attn_implementation": "kernels-community/evil",
    "_experts_implementation_internal": "kernels-community/evil",
    "attn_implementation": "kernels-community/evil",
    "experts_implementation": "kernels-community/evil",
    "trust_remote_code": True,
    "use_kernels": True,
    "kernel_config": {"Linear": "evil/kernel"},
    "attention_kernel": "evil/kernel",
    "custom_pipelines": {"text-classification": {"impl": "evil.Pipeline"}},
    "custom_generate": "evil/generate",
    "transformers_weights": "../../evil.safetensors",
    "fusion_config": {"attention": True},
    "extra_files": ["../../evil.safetensors"],
    "base_model_tp_plan": {"*": "evil"},
    "use_pretrained_backbone": True,
}


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_c19_trust_keys_are_dropped_and_reported(folder: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(folder / "config.json", {key: HOSTILE_KEYS[key], "text_config": {"deeper": {key: HOSTILE_KEYS[key]}}})
    verified = verify(folder)
    assert any(f"{key} " in finding for finding in verified.findings)
    assert any(f"text_config.deeper.{key} " in finding for finding in verified.findings)
    assert key not in json.dumps(dict(verified.config))
    attempts: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: attempts.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: attempts.append(args))
    model = load_model(verified, auto_class=CLASSIFICATION)
    load_tokenizer(verified)
    assert model.config._attn_implementation == "sdpa"
    assert key.startswith(("_attn", "_experts", "attn", "experts")) or key not in vars(model.config)
    assert attempts == []


def test_c19_backbone_of_another_repository_is_never_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The config classes of detection models fetch the config that `backbone` names while they are built."""
    edit_json(folder / "config.json", {"model_type": "dpt", "backbone": "evil/repo", "use_timm_backbone": False})
    verified = verify(folder)
    assert "config.json: backbone is never obeyed; dropped" in verified.findings
    attempts: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: attempts.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: attempts.append(args))
    assert load_config(verified).model_type == "dpt"
    assert attempts == []


def test_c19_twin_numbers_about_kernels_are_kept(folder: Path) -> None:
    edit_json(folder / "config.json", {"conv_kernel_size": 3, "conv_kernel": [1, 3]})
    verified = verify(folder)
    assert verified.findings == ()
    assert verified.config["conv_kernel"] == [1, 3]


def test_c19_keys_a_model_type_does_not_have_are_dropped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "config.json", {"pooler_fc_size": 768, "position_embedding_type": "relative_key"})
    model = load_model(verify(folder), auto_class=CLASSIFICATION)
    assert "pooler_fc_size" not in vars(model.config)
    message = next(r for r in caplog.records if "pooler_fc_size" in r.getMessage())
    assert message.levelname == "WARNING"  # for the position embeddings: other mathematics than was trained


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": -1},
        {"hidden_size": 0},
        {"hidden_size": "32"},
        {"hidden_size": 32.0},
        {"hidden_size": True},
        {"hidden_size": 10**30},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 9_999},
        {"num_attention_heads": 5},
        {"num_attention_heads": 0},
        {"vocab_size": 10**9},
        {"vocab_size": -5},
        {"intermediate_size": -64},
        {"max_position_embeddings": 10**12},
        {"text_config": {"hidden_size": -1}},
    ],
)
def test_c20_impossible_sizes_are_refused_before_a_model_is_built(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", changes)
    start = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        verify(folder)
    assert time.perf_counter() - start < 2
    assert caught.value.code in ("config-invalid", "config-size-mismatch")
    assert "config.json" in str(caught.value.where)


@pytest.mark.parametrize("key", ["intermediate_size", "max_position_embeddings", "type_vocab_size"])
@pytest.mark.parametrize("fresh_head", [None, {"num_labels": 2}])
def test_c20_sizes_that_the_weights_cannot_fill_take_no_memory(
    folder: Path, key: str, fresh_head: dict[str, object] | None
) -> None:
    assert load_model(verify(folder), auto_class=CLASSIFICATION).config.num_labels == 2  # the healthy twin; imports
    edit_json(folder / "config.json", {key: 1 << 26})  # 8 GB and more, were it built
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused("config-size-mismatch", "config.json"):
        load_model(verify(folder), auto_class=CLASSIFICATION, fresh_head=fresh_head)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # in KB


def test_c20_outputs_are_named_whatever_the_config_says(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "config.json", {"return_dict": False})
    verified = verify(folder)
    model = load_model(verified, auto_class=CLASSIFICATION)
    assert model(**load_tokenizer(verified)("warm", return_tensors="pt")).logits.shape == (1, 2)
    assert any("return_dict" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_c20_twin_honest_sizes_pass(tiny: Callable[..., Path], family: str) -> None:
    assert verify(tiny(family, "base")).tensors


def test_c20_the_config_class_refuses_the_rest(folder: Path) -> None:
    edit_json(folder / "config.json", {"layer_norm_eps": "small"})
    with refused("config-invalid", "config.json"):
        load_config(verify(folder))


def test_c20_quantized_checkpoint_is_refused(folder: Path) -> None:
    edit_json(folder / "config.json", {"quantization_config": {"quant_method": "gptq"}})
    with refused("quantized-unsupported", "quantization_config"):
        verify(folder)
