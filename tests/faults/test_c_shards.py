"""Catalogue C12-C15: shards, shapes, values that are not finite, and files that changed after they were saved."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from support.damage import copy_of, edit_json, refused, write_safetensors
from warmstart.checkpoints import load_model, verify
from warmstart.checkpoints.manifest import write_manifest

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).has_head  # the healthy twin of every test here
    return copy


def _shard(folder: Path) -> tuple[dict[str, str], list[str]]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    for file in files:
        part = {n: tensors[n] for n in names if weight_map[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    _write_index(folder, weight_map)
    return weight_map, files


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_c12_twin_healthy_shards_load(folder: Path) -> None:
    whole = verify(folder)
    before = load_model(whole, auto_class="AutoModelForSequenceClassification").state_dict()
    _shard(folder)
    verified = verify(folder)
    assert set(verified.tensors) == set(whole.tensors)
    assert len(verified.weights) == 2
    after = load_model(verified, auto_class="AutoModelForSequenceClassification").state_dict()
    assert all((after[name] == before[name]).all() for name in before)


def test_c12_missing_shard(folder: Path) -> None:
    _, files = _shard(folder)
    (folder / files[1]).unlink()
    with refused("shard-missing", "index.json") as caught:
        verify(folder)
    assert caught.value.value == files[1]


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "model.bin", 7, "..safetensors"],
)
def test_c12_index_leads_outside(folder: Path, shard: object) -> None:
    weight_map, _ = _shard(folder)
    _write_index(folder, weight_map | {"classifier.bias": shard})  # type: ignore[dict-item]
    with refused("index-invalid", "index.json"):
        verify(folder)


def test_c12_shard_is_a_link_outside(folder: Path, tmp_path: Path) -> None:
    _, files = _shard(folder)
    (folder / files[0]).rename(tmp_path / "elsewhere.safetensors")
    (folder / files[0]).symlink_to(tmp_path / "elsewhere.safetensors")
    with refused("symlink-outside", files[0]):
        verify(folder)


def test_c12_folder_inside_is_a_link_outside(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    (folder / "1_Pooling").symlink_to(outside)
    with refused("symlink-outside", "1_Pooling/config.json"):
        verify(folder)
    (folder / "1_Pooling").unlink()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    assert verify(folder).findings == ()


def test_c12_weights_link_to_a_system_file(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to("/etc/passwd")
    with refused("symlink-outside", WEIGHTS):
        verify(folder)


def test_c12_index_and_shards_disagree(folder: Path) -> None:
    weight_map, files = _shard(folder)
    _write_index(folder, weight_map | {"ghost.weight": files[0]})
    with refused("shard-mismatch", "index.json") as caught:
        verify(folder)
    assert "ghost.weight" in caught.value.what


def test_c13_shard_from_another_model_lists_tensors(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    save_file(tensors | {name: np.zeros((48, 32), "f4")}, folder / WEIGHTS, metadata={"format": "pt"})
    with refused("weights-shape", "checkpoint", seconds=10) as caught:  # the first load imports the model's code
        load_model(verify(folder), auto_class="AutoModelForSequenceClassification")
    assert name in caught.value.what
    assert "(48, 32)" in caught.value.what
    assert "(64, 32)" in caught.value.what


def test_c13_missing_body_weights_are_listed(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "bert.encoder.layer.1.output.dense.weight"
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with refused("weights-missing", "checkpoint", seconds=10) as caught:
        load_model(
            verify(folder), auto_class="AutoModelForSequenceClassification", fresh_head={"num_labels": 2}
        )  # a fresh head excuses the head only
    assert name in caught.value.what


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_c14_nonfinite_weights_are_a_finding(
    folder: Path, value: float, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name].astype(dtype)
    tensors[name][-1, -1] = value
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    verified = verify(folder)
    assert any(name in finding and "NaN" in finding for finding in verified.findings)
    assert any(name in record.getMessage() and record.levelname == "WARNING" for record in caplog.records)


def test_c14_bfloat16_and_memory(tmp_path: Path) -> None:
    from warmstart.checkpoints.safetensors_file import nonfinite_tensors, read_header

    count = 8 << 20
    bits = np.full(count, 0x3F80, "<u2")  # ones
    bits[-1] = 0x7F81  # a NaN
    sound = {"dtype": "BF16", "shape": [count // 2], "data_offsets": [0, count]}
    spoilt = {"dtype": "BF16", "shape": [count // 2], "data_offsets": [count, 2 * count]}
    write_safetensors(tmp_path / "x.safetensors", {"sound": sound, "spoilt": spoilt}, bits.tobytes())
    tensors = read_header(tmp_path / "x.safetensors")
    tracemalloc.start()
    assert list(nonfinite_tensors(tensors)) == ["spoilt"]
    assert tracemalloc.get_traced_memory()[1] < 24 << 20
    tracemalloc.stop()


def test_c15_flipped_bit_is_named(folder: Path) -> None:
    write_manifest(folder)
    assert verify(folder).findings == ()
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-3] ^= 0x10
    (folder / WEIGHTS).write_bytes(content)
    with refused("manifest-mismatch", WEIGHTS):
        verify(folder)


def test_c15_file_of_the_manifest_is_gone_or_edited(folder: Path) -> None:
    (folder / "README.md").write_text("card")
    write_manifest(folder)
    (folder / "README.md").write_text("a better card")
    assert any("README.md" in finding for finding in verify(folder).findings)  # editing the card is allowed
    edit_json(folder / "config.json", {"hidden_act": "relu"})
    with refused("manifest-mismatch", "config.json"):
        verify(folder)
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "MANIFEST.json", {"files": _entries(folder, "tokenizer.json")})
    with refused("manifest-file-missing", "tokenizer.json"):
        verify(folder)


def _entries(folder: Path, *missing: str) -> dict[str, object]:
    entries: dict[str, object] = {name: {"size": 1, "sha256": "0" * 64} for name in missing}
    content = (folder / WEIGHTS).read_bytes()
    return entries | {WEIGHTS: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ""])
def test_c15_hostile_manifest(folder: Path, name: str) -> None:
    write_manifest(folder)
    edit_json(folder / "MANIFEST.json", {"files": {name: {"size": 1, "sha256": "0" * 64}}})
    with refused("manifest-invalid", "MANIFEST.json"):
        verify(folder)
