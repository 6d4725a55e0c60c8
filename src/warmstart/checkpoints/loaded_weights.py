"""What transformers only logs: which weights of a model it just built are not the checkpoint's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from warmstart.errors import CheckpointError

logger = logging.getLogger("warmstart")


def is_head(name: str, model: PreTrainedModel) -> bool:
    """Whether a parameter belongs to what sits on the encoder. A pooler does: pretraining often has none."""
    prefix = model.base_model_prefix
    return ".pooler." in f".{name}" or (model.base_model is not model and not name.startswith(f"{prefix}."))


def check_weights(folder: Path, model: PreTrainedModel, info: Mapping[str, Any], *, fresh: bool) -> None:
    """Refuse a model some of whose weights did not come from the file. `info` is transformers' own loading info.

    With `fresh`, the head's may be new. Raises CheckpointError `weights-shape`, `weights-missing`, `head-missing`.
    """
    mismatched = {name: (tuple(file), tuple(built)) for name, file, built in info["mismatched_keys"]}
    missing = set(info["missing_keys"])
    body = {name for name in mismatched if not (fresh and is_head(name, model))}
    if body:
        listed = [
            f"{name}: {mismatched[name][0]} in the file, {mismatched[name][1]} in the config" for name in sorted(body)
        ]
        raise _weights_error(folder, "weights-shape", "weights and config.json disagree on shapes", listed)
    lost = sorted(name for name in missing if not is_head(name, model))
    if lost:
        raise _weights_error(folder, "weights-missing", f"{len(lost)} weights of the model are not in the file", lost)
    headless = sorted(name for name in missing if is_head(name, model))
    if headless and not fresh:
        _refuse_headless(folder, model, headless)
    unused = sorted(name for name in info["unexpected_keys"] if name.startswith(f"{model.base_model_prefix}."))
    if unused:
        logger.warning(
            "%s: %d weights of the file have no place in the model and are not used: %s",
            folder.name,
            len(unused),
            ", ".join(unused[:5]),
        )


def _refuse_headless(folder: Path, model: PreTrainedModel, names: list[str]) -> None:
    if model.base_model is model:  # only a pooler: nothing but `pooler_output` reads it
        logger.warning("%s: no pooler in the file; pooler_output is random, do not use it", folder.name)
        return
    raise CheckpointError(
        "head-missing",
        f"the checkpoint has no trained head for {type(model).__name__}: predictions would be random",
        where=str(folder),
        value=", ".join(names[:5]),
        fix="fine-tune it first (warmstart train -m … -d …), or choose a checkpoint that was trained for this task",
    )


def _weights_error(folder: Path, code: str, what: str, names: list[str]) -> CheckpointError:
    listed = "; ".join(names[:8]) + (f"; and {len(names) - 8} more" if len(names) > 8 else "")
    return CheckpointError(
        code,
        f"{what}: {listed}",
        where=str(folder),
        value=len(names),
        fix="config.json and the weights are of different checkpoints: get both from the same source again",
    )
