"""How a run trains. One schema serves keyword arguments, `--set key=value` and the TOML file of a run."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from warmstart.errors import UsageError
from warmstart.training.recipes import RECIPES, LayerDecay, LoRA, Loss, TopLayers, WeightAverage
from warmstart.training.settings import FROZEN, refuse, with_none

log = logging.getLogger("warmstart")

# What the `config.toml` of a run has beside `[train]`; see `training.recipe`.
OF_THE_CALL = ("model", "data", "validation", "task", "columns", "options")


class TrainConfig(BaseModel):
    """Every setting of a run. `None` means: chosen by the rule that stands beside the field, and said.

        ws.TrainConfig(epochs=3, batch_size=32, seed=1)

    Raises UsageError "config-unknown-key" (with the nearest name) or "config-value", which name the key.
    """

    model_config = FROZEN
    table: ClassVar[str] = ""

    epochs: float = Field(default=3, gt=0, le=10_000, description="passes over the training rows; may be a fraction")
    max_steps: int | None = Field(default=None, gt=0, description="stop after this many optimizer steps")
    batch_size: int = Field(default=32, gt=0, description="rows a micro-batch")
    max_tokens: int | None = Field(
        default=None, gt=0, description="padded tokens a micro-batch may hold, beside batch_size"
    )
    accumulate: int = Field(default=1, gt=0, description="micro-batches an optimizer step")
    learning_rate: float | None = Field(default=None, gt=0, description="peak; None: 0.04 / hidden size")
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's; never on norms and biases")
    warmup: float = Field(default=0.1, ge=0, lt=1, description="share of all steps over which the rate rises from 0")
    schedule: Literal["linear", "cosine", "constant"] = Field(default="linear", description="the rate after warm-up")
    clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm; None: gradients are not clipped")
    seed: int = Field(default=0, ge=0, description="order, masks, dropout and a fresh head are functions of it")
    patience: int | None = Field(default=None, gt=0, description="evaluations without a better one that end the run")
    evaluate_every: int | None = Field(default=None, gt=0, description="optimizer steps; None: after each epoch")
    save_every: int | None = Field(
        default=None, gt=0, description="optimizer steps between snapshots; None: by time, at 2 % of it at most"
    )
    keep: int = Field(default=2, gt=0, description="how many snapshots a finished run keeps, if save_every is given")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="bf16, fp16: autocast, weights stay float32; fp16 scales the loss; on a CPU only if found faster",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:N or mps")
    workers: int = Field(default=0, ge=0, description="processes that collate batches ahead of the loop")
    gradient_checkpointing: bool = Field(
        default=False, description="compute activations twice rather than keep them: less memory, the same gradients"
    )

    # Recipes: see `training.recipes`.
    loss: Loss | None = Field(default=None, description="class weights and label smoothing, in a table")
    layer_decay: LayerDecay | None = Field(default=None, description="a rate that falls with depth, in a table")
    ema: WeightAverage | None = Field(default=None, description="an average of the weights, in a table")
    lora: LoRA | None = Field(default=None, description="low-rank adapters, in a table")
    top_layers: TopLayers | None = Field(default=None, description="the upper layers alone, in a table")

    _refuse = model_validator(mode="wrap")(refuse)


def make_config(values: Mapping[str, Any], *, where: str | None = None) -> TrainConfig:
    """A config from plain values, e.g. of a TOML file; the word "none" stands for None.

    Raises UsageError "config-unknown-key" (with the nearest name) or "config-value", which name `where` and the key.
    """
    try:
        return TrainConfig.model_validate(with_none(values))
    except UsageError as error:
        error.where = replace(error.where, source=where)
        raise


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as plain values: of recipes those that are used, as tables behind all others."""
    values = config.model_dump(mode="json")
    recipes = {key: values.pop(key) for key in RECIPES}
    return {**values, **{key: table for key, table in recipes.items() if table is not None}}


def read_config(path: Path | None, settings: Iterable[str] = ()) -> TrainConfig:
    """The config of a TOML file, with `key=value` settings laid over it.

    The file's settings stand in a table `[train]`, as in the `config.toml` of a run, or at its top. What such a file
    says about model, task and options belongs to the call and is not read here, which is said.

    Raises UsageError "config-not-toml", "config-setting", and what `make_config` raises.
    """
    document = {} if path is None else read_document(path)
    unread = sorted(set(OF_THE_CALL) & document.keys())
    if unread:
        log.warning("%s: %s not taken from there; give them with the call", path, " and ".join(unread))
    return config_of(document, settings, where=None if path is None else str(path))


def read_document(path: Path) -> dict[str, Any]:
    """What a TOML file holds. Raises UsageError "config-not-toml"."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # both kinds of decoding errors are ValueErrors
        raise UsageError(
            "config-not-toml", f"the configuration cannot be read: {error}", where=str(path), fix="give a TOML file"
        ) from None


def config_of(document: Mapping[str, Any], settings: Iterable[str], *, where: str | None) -> TrainConfig:
    """The config in a document as `read_document` gives it, with `key=value` settings laid over it."""
    values = {key: value for key, value in document.items() if key not in OF_THE_CALL}
    table = values.pop("train", {})
    values |= table if isinstance(table, dict) else {"train": table}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(
                "config-setting", "a setting is written key=value", value=setting, fix="e.g. --set epochs=2"
            )
        _set(values, key.strip(), text.strip())
    return make_config(values, where=where)


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Set `learning_rate`, `lora.rank` or `loss.class_weights.LABEL` in place. Lists are written a,b,c."""
    table, dot, name = key.partition(".")
    if not dot:
        values[table] = text
        return
    inner = values.get(table)
    values[table] = inner = dict(inner) if isinstance(inner, dict) else {}
    if table == "loss" and name.startswith("class_weights."):
        weights = inner.get("class_weights")
        inner["class_weights"] = {
            **(weights if isinstance(weights, dict) else {}),
            name.removeprefix("class_weights."): text,
        }
    else:
        inner[name] = text.split(",") if (table, name) == ("lora", "targets") and text.lower() != "none" else text
