"""The demonstration, shortened to a few steps: its split, its last line, and that plain transformers agrees with it."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from warmstart.cli import main as cli
from warmstart.verbs import demo as demo_module
from warmstart.verbs.demo import SENTENCES, movie_reviews


def _bucket(text: str) -> int:
    return sha256(re.sub("[^a-z0-9]", "", text.lower()).encode()).digest()[0] % 10


def test_the_split_is_the_one_rule_and_leaves_no_text_in_two_parts() -> None:
    parts = {name: movie_reviews(name) for name in ("train", "validation", "test")}
    buckets = {name: {_bucket(row["text"]) for row in rows} for name, rows in parts.items()}
    assert buckets == {"train": set(range(8)), "validation": {8}, "test": {9}}
    assert sum(map(len, parts.values())) > 10_500
    assert {row["label"] for row in parts["test"]} == {"NEGATIVE", "POSITIVE"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    """The last line of a demo of four steps on 200 test reviews, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("demo")
    whole = movie_reviews

    def few(split: str) -> list[demo_module.Row]:
        return whole(split)[: {"train": 256, "validation": 64, "test": 200}[split]]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(demo_module, "movie_reviews", few)
        with redirect_stdout(io.StringIO()) as stdout:
            assert cli.run(["demo", "-o", "runs/demo", "--set", "max_steps=4"]) == 0
    lines = stdout.getvalue().splitlines()
    assert all(any(text in line for line in lines) for text in SENTENCES)
    return json.loads(lines[-1]), folder


def test_the_last_line_has_the_promised_shape(printed: tuple[dict[str, object], Path]) -> None:
    last, folder = printed
    assert last["task"] == "text-classification" and last["rows"] == 200
    metrics = last["metrics"]
    assert isinstance(metrics, dict) and metrics["accuracy"]["lo"] <= last["accuracy"] <= metrics["accuracy"]["hi"]
    assert isinstance(last["seconds"], float) and last["seconds"] > 0
    assert not Path(str(last["model"])).is_absolute() and (folder / str(last["model"]) / "model.safetensors").is_file()


def test_plain_transformers_recomputes_the_same_accuracy(printed: tuple[dict[str, object], Path]) -> None:
    last, folder = printed
    model = AutoModelForSequenceClassification.from_pretrained(folder / str(last["model"]))
    tokenizer = AutoTokenizer.from_pretrained(folder / str(last["model"]))
    rows = movie_reviews("test")[:200]
    right = 0
    for start in range(0, len(rows), 50):
        some = rows[start : start + 50]
        inputs = tokenizer([row["text"] for row in some], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            best = model(**inputs).logits.argmax(dim=-1).tolist()
        right += sum(model.config.id2label[i] == row["label"] for i, row in zip(best, some, strict=True))
    assert right / len(rows) == last["accuracy"]
