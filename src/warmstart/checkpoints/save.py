"""Saving a model and its tokenizer as a standard Hugging Face folder, committed in one step."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warmstart.checkpoints.commit import commit_folder
from warmstart.checkpoints.quiet import quiet_transformers
from warmstart.errors import UsageError

__all__ = ["commit_folder", "save_model", "save_settings", "write_model"]


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    target: Path,
    *,
    extra: Mapping[str, bytes],
    replace: bool = False,
) -> Path:
    """Save a standard Hugging Face folder that plain `AutoModelFor….from_pretrained` loads. Returns its path.

    It holds config.json, model.safetensors, the tokenizer's files, every file of `extra` (plain names such as
    `README.md`, or `1_Pooling/config.json` in a plain folder), and MANIFEST.json. Truncation and padding that calls of
    the tokenizer left behind are not saved. Raises what `commit_folder` raises, and UsageError `extra-name`.
    """
    for name in extra:
        if not re.fullmatch(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,127}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            raise UsageError(
                "extra-name", "an extra file needs a plain name", value=name, fix="use letters, digits, . _ -"
            )

    def write(folder: Path) -> None:
        write_model(model, tokenizer, folder)
        for name, data in extra.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return commit_folder(target, write, replace=replace, needed=weights + sum(map(len, extra.values())))


def write_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """The files of `save_model` without extras, into a folder that exists and that somebody else commits."""
    with quiet_transformers():
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    if tokenizer is not None:
        _reset_tokenizer(folder / "tokenizer.json")


def save_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`config.json` and the tokenizer's files, as `save_model` writes them, into a folder that exists."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    with quiet_transformers():
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _reset_tokenizer(folder / "tokenizer.json")


def _reset_tokenizer(path: Path) -> None:
    """A transformers tokenizer leaves the truncation and padding of its last call in the Rust object it saves."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("truncation") is None and content.get("padding") is None:
        return
    content["truncation"] = content["padding"] = None
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
