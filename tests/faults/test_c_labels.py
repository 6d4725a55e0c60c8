"""Catalogue C21-C24: label tables that contradict themselves or the head, hostile names, and no head at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from support.damage import copy_of, edit_json, refused
from warmstart.checkpoints import load_model, verify
from warmstart.display import escape_terminal

CLASSIFICATION = "AutoModelForSequenceClassification"


@pytest.fixture
def folder(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    copy = copy_of(tiny("bert"), tmp_path / "checkpoint")
    assert verify(copy).labels == ("NEGATIVE", "POSITIVE")  # the healthy twin of every test here
    return copy


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 3},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": None},
        {"id2label": {"0": "a"}, "label2id": None},
        {"num_labels": "2"},
        {"num_labels": 0},
        {"num_labels": 10**12},
        {"num_labels": 3, "id2label": None, "label2id": None},
    ],
)
def test_c21_num_labels_and_table_and_head_disagree(folder: Path, changes: dict[str, Any]) -> None:
    edit_json(folder / "config.json", changes, remove=tuple(key for key, value in changes.items() if value is None))
    with refused("label-count", "config.json"):
        verify(folder)


def test_c21_twin_two_unnamed_labels_as_transformers_writes_them(folder: Path) -> None:
    edit_json(folder / "config.json", {}, remove=("id2label", "label2id"))
    assert verify(folder).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ({"0": "same", "1": "same"}, "label-duplicate"),
        ({"0": "a", "2": "b"}, "label-table-gap"),
        ({"1": "a", "2": "b"}, "label-table-gap"),
        ({"zero": "a", "1": "b"}, "label-table-invalid"),
        ({"-1": "a", "0": "b"}, "label-table-invalid"),
        ({"0": "a", "01": "b"}, "label-table-invalid"),
        ({"0": "a", "1.0": "b"}, "label-table-invalid"),
        ({"0": "a", "1": 7}, "label-table-invalid"),
        ({"0": "a", "1": None}, "label-table-invalid"),
        ({"0": "a", "1": ["b"]}, "label-table-invalid"),
        (["a", "b"], "label-table-invalid"),
        ({}, "label-table-invalid"),
        ("ab", "label-table-invalid"),
    ],
)
def test_c22_broken_label_tables(folder: Path, table: object, code: str) -> None:
    edit_json(folder / "config.json", {"id2label": table}, remove=("label2id",))
    with refused(code, "id2label"):
        verify(folder)


@pytest.mark.parametrize("label2id", [{"NEGATIVE": 1, "POSITIVE": 0}, {"NEGATIVE": 0}, {"bad": 0, "good": 1}, ["a"]])
def test_c22_tables_contradict_each_other(folder: Path, label2id: object) -> None:
    edit_json(folder / "config.json", {"label2id": label2id})
    code = "label-tables-disagree" if isinstance(label2id, dict) else "label-table-invalid"
    with refused(code, "label2id"):
        verify(folder)


@pytest.mark.parametrize(
    "label2id", [{"POSITIVE": 1, "NEGATIVE": 0}, {"NEGATIVE": "0", "POSITIVE": "1"}, {"LABEL_0": 0, "LABEL_1": 1}]
)
def test_c22_twin_tables_that_agree(folder: Path, label2id: dict[str, object]) -> None:
    edit_json(folder / "config.json", {"label2id": label2id})
    assert verify(folder).labels == ("NEGATIVE", "POSITIVE")


HOSTILE_LABEL = "<script>alert(1)</script>\x1b[31m\u202e\nred"


def test_c23_hostile_label_names_are_kept_and_escaped(folder: Path) -> None:
    edit_json(folder / "config.json", {"id2label": {"0": HOSTILE_LABEL, "1": "ok"}}, remove=("label2id",))
    verified = verify(folder)
    assert verified.labels == (HOSTILE_LABEL, "ok")
    model = load_model(verified, auto_class=CLASSIFICATION)
    assert model.config.id2label[0] == HOSTILE_LABEL
    shown = escape_terminal(HOSTILE_LABEL)
    assert shown == "<script>alert(1)</script>\\x1b[31m\\u202e\\x0ared"
    assert shown.isprintable()


def test_c23_hostile_labels_stay_escaped_inside_errors(folder: Path) -> None:
    edit_json(folder / "config.json", {"id2label": {"0": HOSTILE_LABEL, "1": HOSTILE_LABEL}}, remove=("label2id",))
    with refused("label-duplicate", "id2label") as caught:
        verify(folder)
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)


def test_c24_missing_head_is_refused(tiny: Callable[..., Path], folder: Path) -> None:
    for family in ("bert", "distilbert", "roberta", "modernbert", "gpt2"):
        verified = verify(tiny(family, "base"))
        assert not verified.has_head
        assert verified.labels is None
        with refused("head-missing", family, seconds=5) as caught:
            load_model(verified, auto_class=CLASSIFICATION)
        assert "fine-tune" in caught.value.fix
    assert load_model(verify(folder), auto_class=CLASSIFICATION).config.num_labels == 2


def test_c24_head_in_the_name_only(folder: Path) -> None:
    tensors = {
        name: value for name, value in load_file(folder / "model.safetensors").items() if "classifier" not in name
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    verified = verify(folder)
    assert verified.task == "text-classification"
    assert not verified.has_head
    with refused("head-missing", "checkpoint"):
        load_model(verified, auto_class=CLASSIFICATION)


def test_c24_half_a_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with refused("head-missing", "checkpoint") as caught:
        load_model(verify(folder), auto_class=CLASSIFICATION)
    assert "classifier.bias" in str(caught.value.value)
    assert np.isfinite(tensors["classifier.weight"]).all()
