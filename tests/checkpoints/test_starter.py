"""The starter's delta: small, exact about its base, and an ordinary checkpoint once put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from support.damage import copy_of, edit_json, refused
from warmstart.checkpoints import find, load_model, make_delta, materialise, verify
from warmstart.checkpoints import starter as module

LOW_RANK = "bert.encoder.layer.1.intermediate.dense.weight"  # (64, 32)
VECTOR = "bert.encoder.layer.0.output.dense.bias"


@pytest.fixture
def pair(tiny: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A base, and a classifier on it: one matrix moved by rank 2, one vector moved, a head of its own."""
    base, tuned = copy_of(tiny("bert", "base"), tmp_path / "base"), copy_of(tiny("bert"), tmp_path / "tuned")
    plain = {f"bert.{name}": value for name, value in load_file(base / "model.safetensors").items()}
    head = {n: v for n, v in load_file(tuned / "model.safetensors").items() if n.startswith("classifier")}
    rng = np.random.default_rng(0)
    change = rng.normal(size=(64, 2)) @ rng.normal(size=(2, 32)) * 0.1
    tensors = plain | head | {LOW_RANK: (plain[LOW_RANK] + change).astype("f4"), VECTOR: plain[VECTOR] + 0.25}
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    (tuned / "warmstart.json").write_text('{"task": "text-classification"}')
    return base, tuned


def test_delta_and_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    lost = make_delta(base, tuned, tmp_path / "delta", 4)
    assert set(lost) == {LOW_RANK, VECTOR, "classifier.weight", "classifier.bias"}
    assert max(lost.values()) < 2e-3  # fp16
    names = set(load_file(tmp_path / "delta" / "delta.safetensors"))
    assert {f"{LOW_RANK}.left", f"{LOW_RANK}.right", f"{VECTOR}.value", "classifier.weight.value"} <= names
    built = materialise(base, tmp_path / "delta", tmp_path / "built")
    expected, actual = load_file(tuned / "model.safetensors"), load_file(built / "model.safetensors")
    assert set(actual) == set(expected)
    assert all(actual[name].dtype == np.float32 for name in actual)
    assert max(np.abs(actual[name] - expected[name]).max() for name in expected) < 2e-3
    unchanged = set(expected) - set(lost)
    assert all(np.array_equal(actual[name], expected[name]) for name in unchanged)


def test_the_factors_have_the_true_rank(pair: tuple[Path, Path], tmp_path: Path) -> None:
    make_delta(*pair, tmp_path / "delta", 8)
    delta = load_file(tmp_path / "delta" / "delta.safetensors")
    left, right = delta[f"{LOW_RANK}.left"], delta[f"{LOW_RANK}.right"]
    assert left.shape[1] == right.shape[0] <= 8
    assert left.dtype == right.dtype == np.float16


def test_cutting_the_rank_loses_what_is_reported(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    lost = make_delta(base, tuned, tmp_path / "delta", 1)
    built = load_file(materialise(base, tmp_path / "delta", tmp_path / "built") / "model.safetensors")[LOW_RANK]
    old = load_file(base / "model.safetensors")[LOW_RANK.removeprefix("bert.")]
    new = load_file(tuned / "model.safetensors")[LOW_RANK]
    share = np.linalg.norm(new - built) / np.linalg.norm(new - old)
    assert 0.05 < share < 1
    assert lost[LOW_RANK] == pytest.approx(share, abs=1e-4)


def test_what_was_put_together_is_an_ordinary_checkpoint(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    make_delta(base, tuned, tmp_path / "delta", 4)
    built = materialise(base, tmp_path / "delta", tmp_path / "built")
    verified = verify(built)
    assert (verified.task, verified.labels, verified.findings) == ("text-classification", ("NEGATIVE", "POSITIVE"), ())
    model = load_model(verified, auto_class="AutoModelForSequenceClassification")
    plain = AutoModelForSequenceClassification.from_pretrained(built)
    assert (model.classifier.weight == plain.classifier.weight).all()
    assert AutoTokenizer.from_pretrained(built)("warm")["input_ids"]


def test_another_base_is_refused(pair: tuple[Path, Path], tmp_path: Path, tiny: Callable[..., Path]) -> None:
    base, tuned = pair
    make_delta(base, tuned, tmp_path / "delta", 4)
    with refused("starter-base", "starter.json"):
        materialise(tiny("distilbert", "base"), tmp_path / "delta", tmp_path / "built")
    with refused("starter-base", "tuned"):
        make_delta(tiny("gpt2", "base"), tuned, tmp_path / "other", 4)
    assert not (tmp_path / "built").exists()


def test_a_delta_that_does_not_fit_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    make_delta(base, tuned, tmp_path / "delta", 4)
    file = tmp_path / "delta" / "delta.safetensors"
    good = load_file(file)
    save_file({n: v for n, v in good.items() if n != f"{LOW_RANK}.right"}, file)
    with refused("starter-invalid", "delta.safetensors"):
        materialise(base, tmp_path / "delta", tmp_path / "built")
    save_file(good | {"classifier.weight.what": good["classifier.weight.value"]}, file)
    with refused("starter-invalid", "delta.safetensors"):
        materialise(base, tmp_path / "delta", tmp_path / "built")


def test_starter_by_name_is_put_together_once(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = pair
    make_delta(base, tuned, tmp_path / "delta", 4)
    asked: list[Path] = []
    monkeypatch.setattr(module, "DELTA", tmp_path / "delta")
    monkeypatch.setattr(module, "starter_encoder", lambda cache: asked.append(cache) or base)
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    first = find("starter")
    assert (first.source, verify(first.folder).labels) == ("starter", ("NEGATIVE", "POSITIVE"))
    assert find("starter").folder == first.folder
    assert asked == [tmp_path / "cache"]
    edit_json(tmp_path / "delta" / "starter.json", {"rank": 5})  # another delta: another place in the cache
    assert find("starter").folder != first.folder


def test_installation_without_the_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DELTA", tmp_path / "none")
    with refused("starter-missing", "none"):
        find("starter")
