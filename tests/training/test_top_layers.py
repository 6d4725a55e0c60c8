"""Training the upper layers alone: frozen below, and the same from kept states as from computed ones."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import warmstart as ws
from support.models import tiny_tokenizer
from support.runs import FAST, reviews, without_dropout
from warmstart.rows import Row
from warmstart.training.depth import depths
from warmstart.verbs.weights import differing_tensors

ROWS = reviews(24)


def _train(checkpoint: Path, output: Path, top: ws.TopLayers | None, rows: Any = None, **call: Any) -> ws.Run:
    config = ws.TrainConfig(top_layers=top, **{"epochs": 2, **FAST, **call.pop("config", {})})
    return ws.train(checkpoint, rows or ROWS, output=output, config=config, **call)


@contextmanager
def _counted(kind: str) -> Iterator[list[int]]:
    """How many tokens each call of a layer's feed-forward network computes."""
    calls: list[int] = []

    def count(module: torch.nn.Module, args: Any, output: Any) -> None:
        if type(module).__name__ == kind:
            calls.append(args[0].shape[:-1].numel())

    hook = torch.nn.modules.module.register_module_forward_hook(count)
    try:
        yield calls
    finally:
        hook.remove()


def _electra(root: Path) -> Path:
    """With a projection between embeddings and layers."""
    tokenizer = tiny_tokenizer("bert")
    config = AutoConfig.for_model(
        "electra", vocab_size=len(tokenizer), embedding_size=16, hidden_size=32, num_hidden_layers=2, num_labels=2,
        num_attention_heads=4, intermediate_size=64, max_position_embeddings=128, pad_token_id=tokenizer.pad_token_id,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root / "electra")
    tokenizer.save_pretrained(root / "electra")
    return root / "electra"


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_kept_states_train_what_computed_ones_train(
    tiny: Callable[..., Path], tmp_path: Path, family: str, layers: int
) -> None:
    """Dropout above stays on: its masks are functions of (seed, step)."""
    checkpoint = _electra(tmp_path) if family == "electra" else tiny(family)
    runs = {
        cache: _train(checkpoint, tmp_path / cache, ws.TopLayers(layers=layers, cache=cache))
        for cache in ("memory", "disk", "off")
    }
    start = ws.load(checkpoint).model.state_dict()
    kept, computed = (runs[name].pipeline.model.state_dict() for name in ("memory", "off"))
    assert differing_tensors(runs["memory"].model, runs["disk"].model) == []
    found, top = depths(runs["memory"].pipeline.model, asked_by="test")
    for name, depth in found.items():
        torch.testing.assert_close(kept[name], computed[name], atol=1e-5, rtol=0)
        frozen = depth < top - layers
        assert torch.equal(kept[name], start[name]) == frozen or "key.bias" in name, name
    assert all(p.requires_grad for p in runs["memory"].pipeline.model.parameters())


def test_the_lower_layers_run_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with _counted("BertIntermediate") as plain:
        _train(tiny("bert"), tmp_path / "a", None, config={"epochs": 5})
    with _counted("BertIntermediate") as kept:
        _train(tiny("bert"), tmp_path / "b", ws.TopLayers(layers=0), config={"epochs": 5})
    pipe = ws.load(tiny("bert"))
    tokens = sum(feature.length for feature in pipe.task.encode([Row(row) for row in ROWS]))
    once = tokens + len(ROWS)  # the last layer for first tokens alone
    assert sum(kept) < 2 * once < sum(plain)  # beside the check of two rows' gradients


def test_without_dropout_it_is_the_run_with_frozen_parameters(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """By a loop of one's own over the same batches."""
    folder = tmp_path / "start"
    pipe = ws.load(tiny("bert"))
    pipe.model.config.hidden_dropout_prob = pipe.model.config.attention_probs_dropout_prob = 0.0
    pipe.model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    config = {"epochs": 1, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0, "clip": None}
    run = _train(folder, tmp_path / "r", ws.TopLayers(layers=1), config=config)
    model = without_dropout(AutoModelForSequenceClassification.from_pretrained(folder)).train()
    trained = [p for n, p in model.named_parameters() if "layer.1." in n or "pooler" in n or "classifier" in n]
    optimizer = torch.optim.AdamW(trained, lr=FAST["learning_rate"], weight_decay=0.0)
    for batch in ws.batches(ROWS, run.pipeline.task, batch_size=FAST["batch_size"], max_tokens=None, seed=0):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    for name, values in run.pipeline.model.state_dict().items():
        if "key.bias" not in name:  # its gradient is rounding alone
            torch.testing.assert_close(model.state_dict()[name], values, atol=2e-4, rtol=1e-3)


def test_rows_of_several_windows_and_evaluation_go_on_as_ever(tiny: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{**row, "text": row["text"] * (1 + i % 4)} for i, row in enumerate(ROWS)]
    options = {"long_text": "windows", "max_length": 16, "stride": 4}
    runs = [
        _train(
            tiny("bert"),
            tmp_path / cache,
            ws.TopLayers(layers=1, cache=cache),
            rows[:16],
            validation=rows[16:],
            options=options,
        )
        for cache in ("memory", "off")
    ]
    one, other = (run.validation for run in runs)
    assert one is not None and other is not None and one.loss == pytest.approx(other.loss, abs=1e-5)
    again = ws.evaluate(ws.load(runs[0].path), rows[16:])
    assert again.loss == pytest.approx(one.loss, abs=1e-6)


def test_the_size_is_said_and_too_large_a_one_refused(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="warmstart"):
        _train(tiny("bert"), tmp_path / "a", ws.TopLayers(layers=0))
    assert "hidden states below the trained layers: 24 of 32 numbers, 0.0 MB in memory" in caplog.text
    monkeypatch.setattr("warmstart.training.top_layers._memory", lambda: 1000)
    with pytest.raises(ws.UsageError) as caught:
        _train(tiny("bert"), tmp_path / "b", ws.TopLayers(layers=1))
    assert caught.value.code == "states-too-large" and "cache=disk" in caught.value.fix
    _train(tiny("bert"), tmp_path / "c", ws.TopLayers(layers=1, cache="disk"))


@pytest.mark.skipif(sys.platform != "linux", reason="room for a file is taken at once on Linux alone")
def test_a_disk_that_fills_up_is_an_error_before_the_states_are_computed(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def answering(number: int) -> Callable[..., None]:
        def reserve(file: int, start: int, size: int) -> None:
            asked.append(size)
            raise OSError(number, os.strerror(number))

        return reserve

    monkeypatch.setattr(os, "posix_fallocate", answering(errno.ENOSPC))
    with pytest.raises(ws.UsageError, match="No space left on device") as caught:
        _train(tiny("bert"), tmp_path / "a", ws.TopLayers(layers=1, cache="disk"))
    assert caught.value.code == "states-too-large" and asked[0] % (4 * 32) == 0 and asked[0] > 0
    monkeypatch.setattr(os, "posix_fallocate", answering(errno.EOPNOTSUPP))  # a file system without it
    _train(tiny("bert"), tmp_path / "b", ws.TopLayers(layers=1, cache="disk"))


@pytest.mark.parametrize("family", ["modernbert", "gpt2"])
def test_other_architectures_are_frozen_and_not_cached(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    with pytest.raises(ws.UsageError) as caught:
        _train(tiny(family), tmp_path / "r", ws.TopLayers(layers=1))
    assert caught.value.code == "states-not-constant" and family in caught.value.what and not (tmp_path / "r").exists()
    start = ws.load(tiny(family)).model.state_dict()
    run = _train(tiny(family), tmp_path / "r", ws.TopLayers(layers=1, cache="off"))
    found, top = depths(run.pipeline.model, asked_by="test")
    after = run.pipeline.model.state_dict()
    assert all(torch.equal(after[name], start[name]) for name, depth in found.items() if depth < top - 1)


def test_what_cannot_be_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def code(call: Callable[[], Any]) -> str:
        with pytest.raises(ws.UsageError) as caught:
            call()
        assert not (tmp_path / "r").exists()
        return caught.value.code

    output = tmp_path / "r"
    assert code(lambda: _train(tiny("bert"), output, ws.TopLayers(layers=3))) == "layers-number"
    lora = {"lora": ws.LoRA()}
    assert code(lambda: _train(tiny("bert"), output, ws.TopLayers(), config=lora)) == "recipes-conflict"
    masks = [{"text": row["text"]} for row in ROWS]
    varies = lambda: _train(tiny("bert", "masks"), output, ws.TopLayers(layers=1), masks, task="fill-mask")  # noqa: E731
    assert code(varies) == "states-not-constant"
