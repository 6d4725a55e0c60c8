"""From a verified folder to transformers' own objects. The only importer of the Auto classes, with its two helpers.

What the Auto class returns is handed out unchanged. Nothing is read from anywhere but the folder, no code of the folder
runs, and no weight is random unless a fresh head was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from warmstart.checkpoints.config import NAME as CONFIG_NAME
from warmstart.checkpoints.config_object import last_line, load_config, say_dropped_keys
from warmstart.checkpoints.loaded_weights import check_weights, is_head
from warmstart.checkpoints.manifest import check_manifest
from warmstart.checkpoints.quiet import quiet_transformers
from warmstart.checkpoints.tokenizer_object import has_vocabulary, load_tokenizer
from warmstart.checkpoints.verified import Verified
from warmstart.checkpoints.weights import read_weights
from warmstart.errors import CheckpointError, UsageError, Where, did_you_mean, is_out_of_memory
from warmstart.randomness import derive

__all__ = ["AUTO_CLASSES", "load_config", "load_model", "load_tokenizer", "load_weights"]

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
_BUFFERS = 1 << 26  # numbers that a model may compute for itself, such as tables of positions, whatever its size
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    verified: Verified,
    *,
    auto_class: str,
    dtype: str = "float32",
    fresh_head: Mapping[str, object] | None = None,
    seed: int | None = None,
) -> PreTrainedModel:
    """The very model that `auto_class` of transformers gives for this folder, on the CPU, in eval mode.

    `dtype` is explicit because transformers 5 otherwise keeps the file's: an fp16 file on a CPU would crawl.
    `fresh_head` (num_labels, id2label, label2id, problem_type) asks for a new, random head; the encoder is
    still the checkpoint's. It is a function of `seed`, and torch's global generator is left as it was; None draws from
    that generator. Without `fresh_head`, a head that is not in the file is an error, never random.

    Raises CheckpointError `config-size-mismatch`, `head-missing`, `weights-missing`, `weights-shape`,
    `architecture-unsupported`, `model-build-failed`, those of `load_config`; UsageError `auto-class-unknown`,
    `dtype-unknown`, `fresh-head-key`.

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
    _check_size(auto, verified, config, fresh=fresh_head is not None)
    with _seeded(seed):
        model, info = _from_pretrained(auto, verified.folder, config, _DTYPES[dtype])
        check_weights(verified.folder, model, info, fresh=fresh_head is not None)
        if fresh_head is not None:
            _renew_head(auto, model, info)
    return model.eval()


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, "fresh-head"))
        yield


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights of a folder that `save_model` wrote back into the very same model, in place.

    The folder is checked as any other (headers, manifest). Raises CheckpointError of `weights.read_weights` and
    `manifest.check_manifest`, `weights-missing`, `weights-shape`, `model-build-failed`.
    """
    folder = folder.resolve()
    check_manifest(folder)
    read_weights(folder)
    restored, info = _from_pretrained(type(model), folder, model.config, model.dtype)
    check_weights(folder, restored, info, fresh=False)
    model.load_state_dict(restored.state_dict())


def _from_pretrained(
    auto: Any, folder: Path, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[Any, dict[str, Any]]:
    with _building(auto, folder, config):
        return auto.from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # so that mismatches are listed; `check_weights` refuses them
            output_loading_info=True,
        )


def _check_size(auto: Any, verified: Verified, config: PreTrainedConfig, *, fresh: bool) -> None:
    """Refuse a model that the weights cannot fill before it takes memory: on torch's meta device it has sizes only.

    Weights that are missing or of another shape would be allocated, however large, before they could be listed.
    """
    with _building(auto, verified.folder, config), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = auto.from_config(config)
    described = model.base_model if fresh else model  # a fresh head is as large as the person asked for
    parameters = sum(parameter.numel() for parameter in described.parameters())
    stored = sum(tensor.count for tensor in verified.tensors.values())
    if parameters > 2 * stored or sum(buffer.numel() for buffer in model.buffers()) > 2 * stored + _BUFFERS:
        raise CheckpointError(
            "config-size-mismatch",
            f"the config describes a model of {parameters:,} parameters, the weights have {stored:,}",
            where=Where(source=str(verified.folder / CONFIG_NAME)),
            fix="config.json and the weights are of different checkpoints: download both again",
        )


@contextmanager
def _building(auto: Any, folder: Path, config: PreTrainedConfig) -> Iterator[None]:
    """What transformers raises while it builds a model, as errors of the checkpoint; and its silence."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "Unrecognized configuration class" in str(error):
            raise CheckpointError(
                "architecture-unsupported",
                f"transformers has no {auto.__name__} for {config.model_type} models",
                where=str(folder / CONFIG_NAME),
                value=config.model_type,
                fix="choose another task for this checkpoint, or another checkpoint for this task",
            ) from error
        raise CheckpointError(
            "model-build-failed",
            f"transformers cannot build the model: {last_line(error)}",
            where=str(folder),
            fix="config.json and weights do not fit each other, or the architecture needs a newer transformers",
        ) from error


def _renew_head(auto: Any, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Redraw head weights that the file happened to have: an old head under new labels would be a silent lie."""
    drawn = set(info["missing_keys"]) | {name for name, _, _ in info["mismatched_keys"]}
    old = {n: p for n, p in model.named_parameters() if is_head(n, model) and ".pooler." not in n and n not in drawn}
    if not old or model.base_model is model:
        return
    with quiet_transformers(), torch.no_grad():
        fresh = dict(auto.from_config(model.config, dtype=model.dtype).named_parameters())
        for name, parameter in old.items():
            parameter.copy_(fresh[name])


def _set_pad_token_id(verified: Verified, config: PreTrainedConfig) -> None:
    """Give the model the tokenizer's padding token where the config has none: GPT-2 heads read the last real token."""
    if config.to_dict().get("pad_token_id", 0) is None and has_vocabulary(verified.folder):
        config.pad_token_id = load_tokenizer(verified).pad_token_id
