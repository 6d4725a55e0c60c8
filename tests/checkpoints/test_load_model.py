"""Loading: the very objects of transformers, nothing random unless asked, nothing printed, nothing left changed."""

from __future__ import annotations

import errno
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from support.damage import copy_of, edit_json, refused
from support.models import FAMILIES, POSITIONS
from warmstart.checkpoints import load_config, load_model, load_tokenizer, load_weights, save_model, verify
from warmstart.errors import CheckpointError, UsageError

CLASSIFICATION = "AutoModelForSequenceClassification"
THREE = {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_very_objects_of_the_auto_classes(tiny: Callable[..., Path], family: str) -> None:
    folder = tiny(family)
    verified = verify(folder)
    model, tokenizer = load_model(verified, auto_class=CLASSIFICATION), load_tokenizer(verified)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    plain_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(model) is type(plain)
    assert type(tokenizer) is type(plain_tokenizer)
    assert not model.training
    assert all((model.state_dict()[name] == value).all() for name, value in plain.state_dict().items())
    texts = ["I love LangChain!", "a dull plot"]
    assert tokenizer(texts)["input_ids"] == plain_tokenizer(texts)["input_ids"]
    with torch.no_grad():
        batch = tokenizer(texts[:1], return_tensors="pt")
        assert torch.equal(model(**batch).logits, plain(**batch).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_true_number_of_positions(tiny: Callable[..., Path], family: str) -> None:
    verified = verify(tiny(family))
    assert verified.max_positions == POSITIONS
    model = load_model(verified, auto_class=CLASSIFICATION)
    ids = torch.full((1, POSITIONS), 5)
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()


def test_gpt2_has_a_padding_token_and_a_batch_equals_single_texts(
    tiny: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    verified = verify(tiny("gpt2"))
    model, tokenizer = load_model(verified, auto_class=CLASSIFICATION), load_tokenizer(verified)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert any("pad" in record.getMessage() for record in caplog.records)
    texts = ["I love it", "a dull, tired plot that never begins"]
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_head_on_a_base_is_a_function_of_the_seed(tiny: Callable[..., Path], family: str) -> None:
    verified = verify(tiny(family, "base"))
    state = torch.random.get_rng_state()
    first, again, other = (
        load_model(verified, auto_class=CLASSIFICATION, fresh_head=THREE, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    base = load_model(verified, auto_class="AutoModel").state_dict()
    assert changed
    assert not {name for name in changed if any(name.endswith(f".{known}") for known in base)}


def test_fresh_head_replaces_an_old_one_of_the_same_shape(tiny: Callable[..., Path]) -> None:
    verified = verify(tiny("bert"))
    labels = {"num_labels": 2, "id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
    old = load_model(verified, auto_class=CLASSIFICATION)
    new = load_model(verified, auto_class=CLASSIFICATION, fresh_head=labels, seed=0)
    assert new.config.id2label == {0: "ham", 1: "spam"}
    assert not torch.equal(old.classifier.weight, new.classifier.weight)
    assert torch.equal(old.bert.pooler.dense.weight, new.bert.pooler.dense.weight)
    assert torch.equal(old.bert.embeddings.word_embeddings.weight, new.bert.embeddings.word_embeddings.weight)


def test_fresh_head_of_another_shape(tiny: Callable[..., Path]) -> None:
    model = load_model(verify(tiny("bert")), auto_class=CLASSIFICATION, fresh_head=THREE)
    assert model.classifier.weight.shape == (3, 32)
    assert model.config.label2id == {"a": 0, "b": 1, "c": 2}


def test_fresh_head_for_regression_and_wrong_keys(tiny: Callable[..., Path]) -> None:
    verified = verify(tiny("bert", "base"))
    head = {"num_labels": 1, "problem_type": "regression"}
    model = load_model(verified, auto_class=CLASSIFICATION, fresh_head=head)
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    with pytest.raises(UsageError) as caught:
        load_model(verified, auto_class=CLASSIFICATION, fresh_head={"num_label": 1})
    assert caught.value.code == "fresh-head-key"
    assert "num_labels" in caught.value.fix


def test_half_precision_files_load_as_float32(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("bert"), tmp_path / "half")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: v.astype(np.float16) for n, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", {"dtype": "float16", "torch_dtype": "float16"})
    verified = verify(folder)
    model = load_model(verified, auto_class=CLASSIFICATION)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load_model(verified, auto_class=CLASSIFICATION, dtype="bfloat16").dtype == torch.bfloat16


def test_wrong_names_are_told_the_right_ones(tiny: Callable[..., Path]) -> None:
    verified = verify(tiny("bert"))
    with pytest.raises(UsageError) as caught:
        load_model(verified, auto_class="AutoModelForSequenceClasification")
    assert CLASSIFICATION in caught.value.fix
    with pytest.raises(UsageError) as caught:
        load_model(verified, auto_class=CLASSIFICATION, dtype="float23")
    assert "float32" in caught.value.fix
    with refused("architecture-unsupported", "config.json", seconds=10):
        load_model(verified, auto_class="AutoModelForCTC")


def test_a_base_without_a_pooler_loads_and_says_so(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(tiny("bert", "base"), tmp_path / "no-pooler")
    tensors = load_file(folder / "model.safetensors")
    save_file({n: v for n, v in tensors.items() if "pooler" not in n}, folder / "model.safetensors", {"format": "pt"})
    assert type(load_model(verify(folder), auto_class="AutoModel")).__name__ == "BertModel"
    assert any("pooler" in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)


def test_layers_the_config_does_not_have_are_said(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(tiny("bert"), tmp_path / "cut")
    edit_json(folder / "config.json", {"num_hidden_layers": 1})
    load_model(verify(folder), auto_class=CLASSIFICATION)
    assert any("bert.encoder.layer.1" in record.getMessage() for record in caplog.records)


def test_an_encoder_is_taken_out_of_a_classifier(tiny: Callable[..., Path]) -> None:
    verified = verify(tiny("bert"))
    encoder = load_model(verified, auto_class="AutoModel")
    whole = load_model(verified, auto_class=CLASSIFICATION)
    assert torch.equal(encoder.embeddings.word_embeddings.weight, whole.bert.embeddings.word_embeddings.weight)


def test_nothing_is_printed_and_nothing_stays_changed(
    tiny: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), warnings.filters[:]
    verified = verify(tiny("gpt2", "base"))
    load_model(verified, auto_class=CLASSIFICATION, fresh_head=THREE)
    load_tokenizer(verified)
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), warnings.filters[:]
    assert before == after
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_modernbert_keeps_old_spellings_of_its_settings(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of(tiny("modernbert"), tmp_path / "old")
    edit_json(
        folder / "config.json",
        {"global_rope_theta": 123.0, "local_rope_theta": 45.0},
        remove=("rope_parameters",),
    )
    ours = load_config(verify(folder)).to_dict()
    plain = transformers.AutoConfig.from_pretrained(folder).to_dict()
    assert ours["rope_parameters"] == plain["rope_parameters"]
    assert "123.0" in str(ours["rope_parameters"])


def test_weights_go_back_into_the_same_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    verified = verify(tiny("bert"))
    model, tokenizer = load_model(verified, auto_class=CLASSIFICATION), load_tokenizer(verified)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "best", extra={})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    identity = id(model.classifier.weight)
    load_weights(model, tmp_path / "best")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert id(model.classifier.weight) == identity  # an optimizer's references stay good
    content = bytearray((tmp_path / "best" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "best" / "model.safetensors").write_bytes(content)
    with refused("manifest-mismatch", "model.safetensors"):
        load_weights(model, tmp_path / "best")


def test_too_little_memory_is_no_fault_of_the_checkpoint(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, expected in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), RuntimeError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes."), RuntimeError),
        (MemoryError(), MemoryError),
        (RuntimeError("unable to mmap 9 bytes from file <a>: Cannot allocate memory (12)"), RuntimeError),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OSError),
        (RuntimeError("size mismatch"), CheckpointError),  # the healthy twin
    ):

        def fail(*arguments: Any, error: Exception = error, **options: Any) -> Any:
            raise error

        with monkeypatch.context() as patch, pytest.raises(expected) as caught:
            patch.setattr(transformers.PreTrainedModel, "from_pretrained", fail)
            load_model(verify(tiny("bert")), auto_class=CLASSIFICATION)
        assert (caught.value is error) is (expected is not CheckpointError)


def test_the_real_encoder_equals_plain_transformers(encoder: Path) -> None:
    verified = verify(encoder)
    model, tokenizer = load_model(verified, auto_class="AutoModel"), load_tokenizer(verified)
    plain = transformers.AutoModel.from_pretrained(encoder, dtype=torch.float32)
    batch = tokenizer(["I love LangChain!", "a dull plot"], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**batch).last_hidden_state, plain(**batch).last_hidden_state)
