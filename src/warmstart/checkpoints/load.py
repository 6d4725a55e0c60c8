"""From a verified folder to transformers' own objects. The only importer of the Auto classes, with its two helpers.

What the Auto class returns is handed out unchanged. Nothing is read from anywhere but the folder, no code of the folder
runs, and no weight is random unless a fresh head was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from warmstart.checkpoints.config import NAME as CONFIG_NAME
from warmstart.checkpoints.config_object import last_line, load_config, say_dropped_keys
from warmstart.checkpoints.files import find_file
from warmstart.checkpoints.quiet import quiet_transformers
from warmstart.checkpoints.tokenizer_object import load_tokenizer
from warmstart.checkpoints.verify import Verified
from warmstart.errors import CheckpointError, UsageError, did_you_mean

__all__ = ["AUTO_CLASSES", "load_config", "load_model", "load_tokenizer"]

logger = logging.getLogger("warmstart")

AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageClassification",
    "AutoModelForAudioClassification",
    "AutoModelForCTC",
    "AutoModelForSpeechSeq2Seq",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    verified: Verified,
    *,
    auto_class: str,
    dtype: str = "float32",
    fresh_head: Mapping[str, object] | None = None,
) -> PreTrainedModel:
    """The very model that `auto_class` of transformers gives for this folder, on the CPU, in eval mode.

    `dtype` is explicit because transformers 5 otherwise keeps the file's: an fp16 file on a CPU would crawl.
    `fresh_head` (num_labels, id2label, label2id, problem_type) asks for a new, randomly initialised head, drawn from
    torch's global generator; the encoder is still the checkpoint's. Without it, a head that is not in the file is an
    error, never random.

    Raises CheckpointError `head-missing`, `weights-missing`, `weights-shape`, `architecture-unsupported`,
    `model-build-failed`, those of `load_config`; UsageError `auto-class-unknown`, `dtype-unknown`, `fresh-head-key`.

    >>> model = load_model(verify(folder), auto_class="AutoModelForSequenceClassification")  # doctest: +SKIP
    >>> type(model).__name__  # doctest: +SKIP
    'BertForSequenceClassification'
    """
    if auto_class not in AUTO_CLASSES:
        raise UsageError(
            "auto-class-unknown",
            f"there is no auto class {auto_class!r}",
            value=auto_class,
            fix=did_you_mean(auto_class, AUTO_CLASSES),
        )
    if dtype not in _DTYPES:
        raise UsageError("dtype-unknown", f"there is no dtype {dtype!r}", value=dtype, fix=did_you_mean(dtype, _DTYPES))
    config = load_config(verified, fresh_head=fresh_head)
    say_dropped_keys(verified)
    _set_pad_token_id(verified, config)
    auto = getattr(transformers, auto_class)
    model, info = _from_pretrained(auto, verified, config, _DTYPES[dtype])
    _check_weights(verified, model, info, fresh=fresh_head is not None)
    if fresh_head is not None:
        _renew_head(auto, model, info)
    return model.eval()


def _from_pretrained(
    auto: Any, verified: Verified, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    try:
        with quiet_transformers():
            return auto.from_pretrained(
                str(verified.folder),
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # so that mismatches are listed; `_check_weights` refuses them
                output_loading_info=True,
            )
    except MemoryError:
        raise
    except Exception as error:
        if "Unrecognized configuration class" in str(error):
            raise CheckpointError(
                "architecture-unsupported",
                f"transformers has no {auto.__name__} for {verified.model_type} models",
                where=str(verified.folder / CONFIG_NAME),
                value=verified.model_type,
                fix="choose another task for this checkpoint, or another checkpoint for this task",
            ) from error
        raise CheckpointError(
            "model-build-failed",
            f"transformers cannot build the model: {last_line(error)}",
            where=str(verified.folder),
            fix="config.json and weights do not fit each other, or the architecture needs a newer transformers",
        ) from error


def _is_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a parameter belongs to what sits on the encoder. A pooler does: pretraining often has none."""
    prefix = model.base_model_prefix
    return ".pooler." in f".{name}" or (model.base_model is not model and not name.startswith(f"{prefix}."))


def _check_weights(verified: Verified, model: PreTrainedModel, info: Mapping[str, Any], *, fresh: bool) -> None:
    mismatched = {name: (tuple(file), tuple(built)) for name, file, built in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    body = {name for name in mismatched if not (fresh and _is_head(name, model))}
    if body:
        listed = [
            f"{name}: {mismatched[name][0]} in the file, {mismatched[name][1]} in the config" for name in sorted(body)
        ]
        raise _weights_error(verified, "weights-shape", "weights and config.json disagree on shapes", listed)
    lost = sorted(name for name in missing if not _is_head(name, model))
    if lost:
        raise _weights_error(verified, "weights-missing", f"{len(lost)} weights of the model are not in the file", lost)
    headless = sorted(name for name in missing if _is_head(name, model))
    if headless and not fresh:
        _refuse_headless(verified, model, headless)
    unused = sorted(name for name in info["unexpected_keys"] if name.startswith(f"{model.base_model_prefix}."))
    if unused:
        logger.warning(
            "%s: %d weights of the file have no place in the model and are not used: %s",
            verified.folder.name,
            len(unused),
            ", ".join(unused[:5]),
        )


def _refuse_headless(verified: Verified, model: PreTrainedModel, names: list[str]) -> None:
    if model.base_model is model:  # only a pooler: nothing but `pooler_output` reads it
        logger.warning("%s: no pooler in the file; pooler_output is random, do not use it", verified.folder.name)
        return
    raise CheckpointError(
        "head-missing",
        f"the checkpoint has no trained head for {type(model).__name__}: predictions would be random",
        where=str(verified.folder),
        value=", ".join(names[:5]),
        fix="fine-tune it first (warmstart train -m … -d …), or choose a checkpoint that was trained for this task",
    )


def _weights_error(verified: Verified, code: str, what: str, names: list[str]) -> CheckpointError:
    listed = "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")
    return CheckpointError(
        code,
        f"{what}: {listed}",
        where=str(verified.folder),
        value=len(names),
        fix="config.json and the weights are of different checkpoints: get both from the same source again",
    )


def _renew_head(auto: Any, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Redraw head weights that the file happened to have: an old head under new labels would be a silent lie."""
    drawn = set(info["missing_keys"]) | {name for name, _, _ in info["mismatched_keys"]}
    old = {n: p for n, p in model.named_parameters() if _is_head(n, model) and ".pooler." not in n and n not in drawn}
    if not old or model.base_model is model:
        return
    with quiet_transformers(), torch.no_grad():
        fresh = dict(auto.from_config(model.config, dtype=model.dtype).named_parameters())
        for name, parameter in old.items():
            parameter.copy_(fresh[name])


def _set_pad_token_id(verified: Verified, config: PreTrainedConfig) -> None:
    """Give the model the tokenizer's padding token where the config has none: GPT-2 heads read the last real token."""
    if config.to_dict().get("pad_token_id", 0) is None and find_file(verified.folder, "tokenizer.json"):
        config.pad_token_id = load_tokenizer(verified).pad_token_id
