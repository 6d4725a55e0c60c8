"""Checkpoints: find, verify, load, save.

`find` and `verify` work without torch and transformers. The functions below that need them import them when they are
called: this is one of the house's four seams of deferred import.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from warmstart.checkpoints.cache import cache_folder
from warmstart.checkpoints.carriers import movie_snippets, starter_encoder
from warmstart.checkpoints.commit import check_free, commit_folder
from warmstart.checkpoints.exported import (
    Exported,
    ExportRecord,
    GraphOutput,
    TokenizerFacts,
    is_export,
    source_needed,
    verify_export,
)
from warmstart.checkpoints.found import STARTERS, Found, cached_names, find
from warmstart.checkpoints.starter import make_delta, materialise
from warmstart.checkpoints.verified import Verified, verify
from warmstart.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from warmstart.checkpoints.adapters import Adapter

__all__ = [
    "STARTERS",
    "ExportRecord",
    "Exported",
    "Found",
    "GraphOutput",
    "TokenizerFacts",
    "Verified",
    "add_adapter",
    "cache_folder",
    "cached_names",
    "check_free",
    "commit_folder",
    "find",
    "is_export",
    "load_config",
    "load_model",
    "load_tokenizer",
    "load_weights",
    "make_delta",
    "materialise",
    "movie_snippets",
    "save_model",
    "save_settings",
    "source_needed",
    "starter_encoder",
    "verify",
    "verify_export",
]


def add_adapter(
    model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
) -> Adapter:
    """See `warmstart.checkpoints.adapters.Adapter`. Raises UsageError "extra-missing" without peft."""
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "extra-missing", "LoRA needs peft, which is not installed", value="peft", fix="pip install warmstart[lora]"
        )
    from warmstart.checkpoints.adapters import Adapter

    return Adapter(model, rank=rank, alpha=alpha, dropout=dropout, targets=targets, seed=seed)


def load_config(verified: Verified, *, fresh_head: Mapping[str, object] | None = None) -> PreTrainedConfig:
    """See `warmstart.checkpoints.load.load_config`."""
    from warmstart.checkpoints import load

    return load.load_config(verified, fresh_head=fresh_head)


def load_model(
    verified: Verified,
    *,
    auto_class: str,
    dtype: str = "float32",
    fresh_head: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> PreTrainedModel:
    """See `warmstart.checkpoints.load.load_model`."""
    from warmstart.checkpoints import load

    return load.load_model(verified, auto_class=auto_class, dtype=dtype, fresh_head=fresh_head, seed=seed)


def load_tokenizer(verified: Verified) -> PreTrainedTokenizerBase:
    """See `warmstart.checkpoints.load.load_tokenizer`."""
    from warmstart.checkpoints import load

    return load.load_tokenizer(verified)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """See `warmstart.checkpoints.load.load_weights`."""
    from warmstart.checkpoints import load

    load.load_weights(model, folder)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    target: Path,
    *,
    extra: Mapping[str, bytes],
    replace: bool = False,
) -> Path:
    """See `warmstart.checkpoints.save.save_model`."""
    from warmstart.checkpoints import save

    return save.save_model(model, tokenizer, target, extra=extra, replace=replace)


def save_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """See `warmstart.checkpoints.save.save_settings`."""
    from warmstart.checkpoints import save

    save.save_settings(model, tokenizer, folder)
