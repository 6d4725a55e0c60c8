"""Recipes: what a run may do beside plain fine-tuning. Each is None in a `TrainConfig` until it is asked for.

    ws.TrainConfig(lora=ws.LoRA(rank=8), ema=ws.WeightAverage(decay=0.99))

In a TOML file they are tables, `[train.lora]`; on the command line `--set lora.rank=8`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from warmstart.training.settings import FROZEN, refuse

# The settings that are recipes.
RECIPES = ("loss", "layer_decay", "ema", "lora", "top_layers")

Weight = Annotated[float, Field(gt=0)]


class Loss(BaseModel):
    """What each label weighs in the training loss of a classification, and how far its targets are smoothed.

    As in `torch.nn.functional.cross_entropy(weight=…, label_smoothing=…)`. Evaluation stays unweighted.

        ws.Loss(class_weights="balanced", label_smoothing=0.1)
    """

    model_config = FROZEN
    table: ClassVar[str] = "loss."

    class_weights: Literal["balanced"] | dict[str, Weight] | None = Field(
        default=None, description='"balanced": rows / (labels · rows of the label); or a weight by label, others 1'
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of each target spread over all labels")

    _refuse = model_validator(mode="wrap")(refuse)


class LayerDecay(BaseModel):
    """A learning rate that falls with depth: the head has the full one, each layer `factor` times that of what is above
    it, and the embeddings the lowest.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification" (2018); per layer as in
    Clark et al., "ELECTRA" (2020).

        ws.LayerDecay(factor=0.9)
    """

    model_config = FROZEN
    table: ClassVar[str] = "layer_decay."

    factor: float = Field(default=0.9, gt=0, le=1, description="a layer's learning rate by that of the layer above it")

    _refuse = model_validator(mode="wrap")(refuse)


class WeightAverage(BaseModel):
    """An exponential moving average (EMA) of the weights, which is what is evaluated and saved.

    Step t, from 1, leaves min(decay, (1 + t) / (10 + t)) of the average before it, so that the start is soon forgotten
    (the rule of TensorFlow's `ExponentialMovingAverage` with `num_updates`).

        ws.WeightAverage(decay=0.99)
    """

    model_config = FROZEN
    table: ClassVar[str] = "ema."

    decay: float = Field(default=0.99, gt=0, lt=1, description="what a step leaves of the average before it")

    _refuse = model_validator(mode="wrap")(refuse)


class LoRA(BaseModel):
    """Low-rank adapters in place of all weights: of a chosen matrix only A and B of W + alpha / rank · BA are trained,
    beside the whole head. The result is saved merged, as a plain checkpoint. Needs the extra `lora`.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021); all linear layers, as in Dettmers
    et al., "QLoRA" (2023).

        ws.LoRA(rank=8)
    """

    model_config = FROZEN
    table: ClassVar[str] = "lora."

    rank: int = Field(default=8, gt=0, description="the rank of each update")
    alpha: float = Field(default=16, gt=0, description="updates are scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on what enters an adapter")
    targets: tuple[str, ...] | None = Field(
        default=None, description='names of linear modules, such as ["query", "value"]; None: all of the layers'
    )

    _refuse = model_validator(mode="wrap")(refuse)


class TopLayers(BaseModel):
    """Only the upper layers and the head are trained. What is below runs once, without dropout, and its hidden states
    are kept, so that a step costs what these layers cost.

        ws.TopLayers(layers=2)
        ws.TopLayers(layers=0)      # the head alone, on cached features
    """

    model_config = FROZEN
    table: ClassVar[str] = "top_layers."

    layers: int = Field(default=2, ge=0, description="how many layers are trained, from the top; 0: the head alone")
    cache: Literal["memory", "disk", "off"] = Field(
        default="memory",
        description="where hidden states from below are kept: memory, disk, or off (computed anew)",
    )

    _refuse = model_validator(mode="wrap")(refuse)
