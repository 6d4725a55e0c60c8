"""Tiny exported checkpoints, each made once a session; copy before changing one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import warmstart as ws
from support.models import tiny_checkpoint
from warmstart.checkpoints.manifest import write_manifest
from warmstart.rows import Row

TEXTS = (
    "I love this film, it is wonderful and warm.",
    "A dull, tired plot.",
    "bad",
    "LangChain and transformers are fun to learn " * 3,
    "the worst two hours of my life",
    "Good words that are said, happy and sad: 0123456789?",
)


def rows(count: int = 24) -> list[Row]:
    """Texts of unequal lengths."""
    return [Row({"text": f"{TEXTS[i % len(TEXTS)]} {i} " + "and " * (i % 5)}) for i in range(count)]


def tiny_export(root: Path, format: str = "openvino", precision: str = "fp32", family: str = "bert") -> Path:
    """An exported folder below `root`, of a tiny classifier with random weights."""
    folder = root / f"export-{family}-{format}-{precision}"
    if not folder.is_dir():
        allowed = ws.Tolerance(rows=8, agreement=1.0 if precision == "fp32" else 0.5, difference=None)
        source = tiny_checkpoint(root, family)
        ws.export(source, folder, format=format, precision=precision, data=rows(), tolerance=allowed)
    return folder


def edit_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change export.json as somebody would who makes the manifest fit again."""
    path = folder / "export.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    seal(folder)


def seal(folder: Path) -> None:
    """Make MANIFEST.json vouch for the folder as it is."""
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    write_manifest(folder)
