"""The files that documentation and examples may rely on, as a person would have them in a folder of their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

GOOD = ("a warm and funny film", "beautifully acted", "I would watch it again", "a clever, moving story", "pure joy")
BAD = ("a dull and empty film", "badly acted", "I walked out", "a lazy, hollow story", "a waste of an evening")


def labelled(repeats: int) -> list[dict[str, str]]:
    texts = [*((text, "positive") for text in GOOD), *((text, "negative") for text in BAD)]
    return [
        {"text": f"{text}{' indeed' * (i % 3)}, take {i}", "label": label}
        for i in range(repeats)
        for text, label in texts
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Path, tiny: Callable[..., Path]) -> Path:
    """A folder with train.jsonl, dev.jsonl, test.jsonl and reviews.csv, as the current directory.

    A folder wins over a starter of its name: `starter-chat` is a tiny decoder here, for the real one takes minutes.
    """
    (tmp_path / "starter-chat").symlink_to(tiny("llama", "generation"))
    for name, repeats in (("train", 6), ("dev", 2), ("test", 2)):
        lines = [json.dumps(row) for row in labelled(repeats)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (tmp_path / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(labelled(2))
    monkeypatch.chdir(tmp_path)
    return tmp_path
