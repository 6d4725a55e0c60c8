"""config.json, read as what it is: data from a stranger.

Keys that could make a loader run code, fetch something or choose a kernel are dropped and reported; numbers that no
model can have are refused before anything is built. Which of the remaining keys a model type knows is decided in
`load`, where the config class of transformers is at hand: every other key is dropped there, and reported too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from warmstart.checkpoints.files import JSON_LIMIT, find_file, read_json
from warmstart.checkpoints.safetensors_file import TensorInfo
from warmstart.checkpoints.weights import adapter_refused
from warmstart.errors import CheckpointError, Where, did_you_mean

logger = logging.getLogger("warmstart")

NAME = "config.json"
# Keys that ask for code, kernels, downloads or other files. Never obeyed, at any depth.
_TRUST = re.compile(
    r"_.*|auto_map|trust_remote_code|custom_.*|.*_implementation|use_kernels?|kernel_config|kernel_mapping|.*_internal|"
    r"fusion_config|transformers_weights|extra_files|extra_config_files|backbone|use_\w+_backbone|backbone_kwargs|"
    r"adapter_.*|distributed_config|.*_plan"
)
_KERNEL = re.compile(r".*kernel.*")  # `kernel_size: 3` is a number of the model; `kernel: "org/name"` is a repository
_BOOKKEEPING = frozenset(
    {"_name_or_path", "_commit_hash", "_attn_implementation_autoset"}
)  # written by every save; harmless to drop
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_QUANTIZED = ("quantization_config", "compression_config")

# Sizes by the names that model families give them.
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "n_embd", "dim", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_OTHER = (
    "intermediate_size",
    "n_inner",
    "hidden_dim",
    "vocab_size",
    "type_vocab_size",
    "embedding_size",
    "decoder_layers",
)
_LIMITS = {
    **dict.fromkeys(_LAYERS, 10_000),
    "decoder_layers": 10_000,
    **dict.fromkeys(_HEADS, 100_000),
    **dict.fromkeys(_WIDTH, 1_000_000),
    **dict.fromkeys((*_POSITIONS, *_OTHER), 1 << 31),
}
_MAY_BE_ZERO = frozenset({"type_vocab_size", "max_position_embeddings", "decoder_layers", "encoder_layers"})
# Position ids of these families start after the padding id, so padding_idx + 1 rows of the table are never used.
_OFFSET_FAMILIES = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text", "ibert", "luke"}
    | {"roberta-prelayernorm", "mluke", "xmod", "layoutlmv3", "lilt", "markuplm", "esm"}
)


def read_config(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The config without its unsafe keys, and a finding for each key that was dropped.

    Raises CheckpointError `config-missing`, `config-invalid`, `quantized-unsupported`, or a file or JSON error.
    """
    path = find_file(folder, NAME)
    if path is None:
        raise _missing(folder)
    raw = read_json(path, JSON_LIMIT)
    for key in _QUANTIZED:
        if raw.get(key):
            raise CheckpointError(
                "quantized-unsupported",
                f"the checkpoint is quantized ({key}); its weights mean nothing without that method",
                where=Where(source=str(path), field=key),
                value=raw[key],
                fix="use the original checkpoint, not quantized",
            )
    dropped: list[str] = []
    config = _sanitise(raw, "", dropped)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", model_type):
        raise _invalid(path, "model_type", "config.json names no model_type", model_type)
    architectures = config.get("architectures")
    if architectures is not None and not _is_names(architectures):
        raise _invalid(path, "architectures", "architectures is not a list of class names", architectures)
    findings = tuple(f"{NAME}: {key} is never obeyed; dropped" for key in dropped)
    for finding in findings:
        logger.warning("%s: %s", folder.name, finding)
    return config, findings


def _missing(folder: Path) -> CheckpointError:
    try:
        inside = sorted(entry.name for entry in folder.iterdir() if (entry / NAME).is_file())[:20]
    except OSError:
        inside = []
    if (folder / "adapter_config.json").exists():
        return adapter_refused(folder)
    fix = (
        f"a checkpoint lies one level down: {did_you_mean('model', inside)}"
        if inside
        else ("give the folder that save_pretrained wrote, with config.json and model.safetensors in it")
    )
    return CheckpointError("config-missing", f"the folder has no {NAME}", where=str(folder), fix=fix)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and re.fullmatch(r"\w{1,128}", v) for v in value)


def _sanitise(config: Mapping[str, Any], prefix: str, dropped: list[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if _is_unsafe(key, value):
            if key not in _BOOKKEEPING:
                dropped.append(name)
        elif key in ("id2label", "label2id"):
            kept[key] = value  # tables, not settings: their keys are label names
        else:
            kept[key] = _sanitise_value(value, f"{name}.", dropped)
    return kept


def _sanitise_value(value: Any, prefix: str, dropped: list[str]) -> Any:
    if isinstance(value, dict):
        return _sanitise(value, prefix, dropped)
    if isinstance(value, list):
        return [_sanitise_value(item, prefix, dropped) for item in value]
    return value


def _is_unsafe(key: str, value: Any) -> bool:
    if _TRUST.fullmatch(key):
        return True
    return bool(_KERNEL.fullmatch(key)) and isinstance(value, str | dict)


def _invalid(path: Path, field: str, what: str, value: object) -> CheckpointError:
    return CheckpointError(
        "config-invalid",
        what,
        where=Where(source=str(path), field=field),
        value=value,
        fix="the file is damaged or was made to do harm: get the checkpoint from its publisher again",
    )


def check_sizes(config: Mapping[str, Any], path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse sizes that no model has or that the weights in the file cannot fill. Builds nothing.

    Raises CheckpointError `config-invalid` or `config-size-mismatch`.
    """
    total = sum(tensor.count for tensor in tensors.values())
    for prefix, part in _parts(config):
        for key, limit in _LIMITS.items():
            _check_number(part, prefix, key, limit, path)
        width, heads = _first(part, _WIDTH), _first(part, _HEADS)
        if width and heads and width % heads and not any(key in part for key in ("head_dim", "d_kv", "kv_channels")):
            what = f"the width {width} does not divide into {heads} attention heads"
            raise _invalid(path, prefix + "num_attention_heads", what, heads)
        claimed = _fewest_parameters(part, width)
        if claimed > 2 * total:
            raise CheckpointError(
                "config-size-mismatch",
                f"the config describes at least {claimed:,} parameters, the weights have {total:,}",
                where=Where(source=str(path), field=prefix + "num_hidden_layers"),
                value={key: part[key] for key in (*_LAYERS, *_WIDTH, "vocab_size") if key in part},
                fix="config.json and the weights are of different checkpoints: download both again",
            )


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "", config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield f"{key}.", value


def _check_number(part: Mapping[str, Any], prefix: str, key: str, limit: int, path: Path) -> None:
    value = part.get(key)
    if value is None or (isinstance(value, list) and key != "vocab_size"):  # vision families give a list a stage
        return
    least = 0 if key in _MAY_BE_ZERO else 1
    if type(value) is not int or (not least <= value <= limit and not (key in _POSITIONS and value == -1)):
        raise _invalid(path, prefix + key, f"{key} must be a whole number from {least} to {limit}", value)


def _first(part: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((part[key] for key in keys if type(part.get(key)) is int), None)


def _fewest_parameters(part: Mapping[str, Any], width: int | None) -> int:
    """A number of parameters below what any model of these sizes has: embeddings, and two square matrices a layer."""
    layers = _first(part, _LAYERS)
    if not width or not layers:
        return 0
    if "num_hidden_groups" in part or part.get("share_layers"):  # ALBERT: one set of weights for all layers
        layers = 1
    embedding_width = _first(part, ("embedding_size", "d_embed", "word_embed_proj_dim")) or width
    return layers * 2 * width * width + (_first(part, ("vocab_size",)) or 0) * embedding_width


def max_positions(config: Mapping[str, Any]) -> int | None:
    """How many tokens a text may have, special tokens included; None where the config sets no such limit.

    Families after RoBERTa number positions from the padding id on: their table has 514 rows for 512 tokens.
    """
    text = config.get("text_config")
    rows = _first(config, _POSITIONS) or (_first(text, _POSITIONS) if isinstance(text, dict) else None)
    if rows is None or rows <= 0:
        return None
    if config.get("model_type") in _OFFSET_FAMILIES and config.get("position_embedding_type", "absolute") == "absolute":
        padding = config.get("pad_token_id")
        return rows - (padding if type(padding) is int else 1) - 1
    return rows
