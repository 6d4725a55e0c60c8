"""What a checkpoint's sentence-transformers files say: pooling, normalisation, prompt and length limit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from warmstart.errors import CheckpointError, UsageError

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len", "last"]

# The switches of sentence-transformers' Pooling module, and what we call them.
_POOLING_SWITCHES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "last",
}
# What newer files write in the one key `pooling_mode`.
_POOLING_NAMES: Mapping[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}
# Where it stands, by the family of the model in older checkpoints; the first that exists is read.
_FAMILIES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_LIMIT_FILES = tuple(f"sentence_{family}_config.json" for family in _FAMILIES)


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a checkpoint's embeddings are made. `limit`: tokens, None where no file names one."""

    pooling: Pooling
    normalize: bool
    prompt: str  # put before every text; empty where none is asked for
    limit: int | None
    lower_case: bool  # texts are lower-cased, which has to be the tokenizer's doing
    prompts: Mapping[str, str] = field(default_factory=dict)  # the checkpoint's own, by name
    pools_prompt: bool = True  # is the prompt's part of the text pooled with the rest


def read_settings(folder: Path) -> EmbeddingSettings:
    """The settings of a checkpoint folder; without its files, the mean of the token vectors as it is.

    Raises CheckpointError "embedding-config-unusable", "embedding-module-unknown" or "embedding-pooling-unknown".
    """
    limit, lower_case = _read_limit(folder)
    prompt, prompts = _read_prompts(folder / "config_sentence_transformers.json")
    pooling, normalize, pools_prompt = _read_modules(folder, prompt)
    return EmbeddingSettings(pooling, normalize, prompt, limit, lower_case, prompts, pools_prompt)


def write_settings(settings: EmbeddingSettings, *, width: int) -> dict[str, bytes]:
    """The files that `read_settings` and sentence-transformers read, by name. `width`: numbers in a vector."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    pooling: dict[str, object] = {"word_embedding_dimension": width, "include_prompt": settings.pools_prompt}
    pooling |= {switch: kind == settings.pooling for switch, kind in _POOLING_SWITCHES.items()}
    default = next((name for name, prompt in settings.prompts.items() if prompt == settings.prompt), None)
    contents: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": settings.limit, "do_lower_case": settings.lower_case},
        "config_sentence_transformers.json": {
            "prompts": dict(settings.prompts),
            "default_prompt_name": default if settings.prompt else None,
            "similarity_fn_name": "cosine",
        },
    }
    return {name: (json.dumps(content, indent=2) + "\n").encode() for name, content in contents.items()}


def choose_prompt(option: str, value: Any, settings: EmbeddingSettings) -> str:
    """A prompt by its name in the checkpoint, or as it stands; a bare word is no prompt but a name mistyped.

    Raises UsageError "option-value".
    """
    if isinstance(value, str):
        if value in settings.prompts:
            value = settings.prompts[value]
        elif value and value[-1].isalnum() and value not in settings.prompts.values():
            value = None
    if not isinstance(value, str):
        names = ", ".join(map(repr, settings.prompts)) or "it has none"
        raise UsageError(
            "option-value",
            f"{option} must be a text that ends in a space or a mark, or a name of the checkpoint's prompts ({names})",
            value=value,
            fix=f'set {option} to such a text, e.g. "query: ", or to a name',
        )
    if value and not settings.pools_prompt:
        raise UsageError(
            "option-value",
            f"{option}: the checkpoint leaves prompts out of its pooling, which this version cannot do",
            value=value,
            fix=f'leave {option} out, or set {option} to ""',
        )
    return value


def _read_limit(folder: Path) -> tuple[int | None, bool]:
    """The length limit, which may be lower than the model's and the tokenizer's, and whether texts are lower-cased."""
    path = next((path for name in _LIMIT_FILES if (path := folder / name).exists()), folder / _LIMIT_FILES[0])
    config = _read_object(path)
    limit = config.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit <= 0):
        raise _unreadable(path, "max_seq_length is no positive whole number", limit)
    return limit, bool(config.get("do_lower_case"))


def _read_prompts(path: Path) -> tuple[str, dict[str, str]]:
    """The prompt that sentence-transformers puts before a text where none is asked for by name, and all of them."""
    config = _read_object(path)
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    known = {key: text for key, text in prompts.items() if isinstance(text, str)} if isinstance(prompts, dict) else {}
    if name is None:
        return "", known
    if name not in known:
        raise _unreadable(path, f"default_prompt_name {name!r} is none of the prompts", prompts)
    return known[name], known


def _read_modules(folder: Path, prompt: str) -> tuple[Pooling, bool, bool]:
    """Pooling, normalisation and whether prompts are pooled, from `modules.json`; without that file, the plain mean."""
    listing = folder / "modules.json"
    modules = _read_json(listing, default=[])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise _unreadable(listing, "this is no list of modules", modules)
    pooling: Pooling = "mean"
    normalize, pools_prompt = False, True
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            path = _inside(folder, str(module.get("path", "")), listing) / "config.json"
            pooling, pools_prompt = _read_pooling(path, prompt)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise CheckpointError(
                "embedding-module-unknown",
                f"the checkpoint has a {kind} module, which this version cannot run",
                where=str(listing),
                value=module,
                fix="use a checkpoint of Transformer, Pooling and Normalize modules",
            )
    return pooling, normalize, pools_prompt


def _inside(folder: Path, name: str, listing: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise _unreadable(listing, "the path of a module must be the name of a folder beside it", name)
    return folder / name


def _read_pooling(path: Path, prompt: str) -> tuple[Pooling, bool]:
    config = _read_object(path)
    named = config.get("pooling_mode")
    switched_on = [_POOLING_SWITCHES.get(key) for key, on in config.items() if on is True and "pooling_mode_" in key]
    chosen = [_POOLING_NAMES.get(str(named))] if named else switched_on
    if len(chosen) != 1 or chosen[0] is None:
        raise CheckpointError(
            "embedding-pooling-unknown",
            "the checkpoint's pooling is not one way this version knows",
            where=str(path),
            value=config,
            fix=f"use a checkpoint that pools by one of: {', '.join(_POOLING_NAMES)}",
        )
    if prompt and config.get("include_prompt") is False:
        raise _unreadable(path, "include_prompt is false, and the checkpoint has a default prompt", prompt)
    return chosen[0], config.get("include_prompt") is not False


def _read_object(path: Path) -> dict[str, Any]:
    content = _read_json(path, default={})
    if not isinstance(content, dict):
        raise _unreadable(path, "this is no JSON object", content)
    return content


def _read_json(path: Path, *, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, f"the file cannot be read: {error}", None) from None


def _unreadable(path: Path, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        "embedding-config-unusable",
        what,
        where=str(path),
        value=value,
        fix="get the sentence-transformers files from the checkpoint's publisher again, or use another checkpoint",
    )
