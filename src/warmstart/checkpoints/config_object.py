"""The config object of transformers, built from the keys that its class knows and from no other."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import fields

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from warmstart.checkpoints.config import NAME as CONFIG_NAME
from warmstart.checkpoints.quiet import quiet_transformers
from warmstart.checkpoints.verified import Verified
from warmstart.errors import CheckpointError, UsageError, Where, did_you_mean

logger = logging.getLogger("warmstart")

# Old names that every config class still accepts although they are no fields of it.
_LEGACY_KEYS = frozenset(
    {"num_labels", "rope_theta", "rope_scaling", "partial_rotary_factor", "output_attentions"}
    | {"decoder_start_token_id"}  # T5 reads it, and declares it nowhere
)
_BOOKKEEPING = frozenset({"model_type", "transformers_version", "torch_dtype", "dtype", "gradient_checkpointing"})
# Settings that transformers 5 no longer has; another value than this changes the mathematics. `return_dict` it has, but
# the models that we hand out always name their outputs.
_INERT: Mapping[str, object] = {
    "position_embedding_type": "absolute",
    "tie_weights_": True,
    "pruned_heads": {},
    "return_dict": True,
}
_HEAD_KEYS = frozenset({"num_labels", "id2label", "label2id", "problem_type"})


def load_config(verified: Verified, *, fresh_head: Mapping[str, object] | None = None) -> PreTrainedConfig:
    """The config object of transformers, built from the allowed keys only. `fresh_head` as in `load_model`.

    A key is allowed when the config class of this model type declares it, or reads it as an old spelling. Every
    other key is dropped; `load_model` says which: stock models do not read them.

    Raises CheckpointError `model-type-unknown` or `config-invalid`, UsageError `fresh-head-key`.
    """
    where = Where(source=str(verified.folder / CONFIG_NAME), field="model_type")
    if verified.model_type not in CONFIG_MAPPING:
        raise CheckpointError(
            "model-type-unknown",
            f"transformers {transformers.__version__} knows no model type {verified.model_type!r}",
            where=where,
            value=verified.model_type,
            fix=f"{did_you_mean(verified.model_type, CONFIG_MAPPING)[:200]} Else: pip install -U transformers",
        )
    config_class = CONFIG_MAPPING[verified.model_type]
    allowed = _allowed_keys(config_class)
    kept = {key: value for key, value in verified.config.items() if key in allowed and key not in _BOOKKEEPING}
    if fresh_head is not None:
        if wrong := sorted(set(fresh_head) - _HEAD_KEYS):
            raise UsageError(
                "fresh-head-key",
                f"a fresh head has no setting {wrong[0]!r}",
                value=wrong[0],
                fix=did_you_mean(wrong[0], _HEAD_KEYS),
            )
        kept = {key: value for key, value in kept.items() if key not in _HEAD_KEYS} | dict(fresh_head)
    try:
        with quiet_transformers():
            return config_class.from_dict(kept)
    except Exception as error:  # the class validates by its own rules and raises what it likes
        raise CheckpointError(
            "config-invalid",
            f"{config_class.__name__} refuses this config: {last_line(error)}",
            where=str(verified.folder / CONFIG_NAME),
            fix="correct the value in config.json, or get the checkpoint from its publisher again",
        ) from error


def say_dropped_keys(verified: Verified) -> None:
    """Log which keys `load_config` left out: as a warning where the model then differs from what they ask for."""
    config_class = CONFIG_MAPPING[verified.model_type]
    unknown = set(verified.config) - _allowed_keys(config_class) - _BOOKKEEPING
    inert = {key for key in unknown if key in _INERT and verified.config[key] == _INERT[key]}
    if unknown - inert:
        names = ", ".join(sorted(unknown - inert))
        level = logging.WARNING if unknown & set(_INERT) - inert else logging.INFO
        logger.log(
            level, "%s: %s has no such config keys, dropped: %s", verified.folder.name, config_class.__name__, names
        )


@functools.cache
def _allowed_keys(config_class: type[PreTrainedConfig]) -> frozenset[str]:
    declared = {field.name for field in fields(config_class)} | set(config_class.attribute_map)
    # Spellings of older versions are read in the class's own __post_init__: kwargs.pop("global_rope_theta", …)
    source = "".join(
        inspect.getsource(c)
        for c in config_class.__mro__
        if issubclass(c, PreTrainedConfig) and c is not PreTrainedConfig
    )
    named = set(re.findall(r"""kwargs\.(?:pop|get)\(\s*["']([a-z][a-z0-9_]*)["']""", source))
    return frozenset((declared | named | _LEGACY_KEYS) - {"return_dict"})


def last_line(error: Exception) -> str:
    """The last line of a foreign error's message: what its author thought sums it up."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1] if lines else type(error).__name__}"[:300]
