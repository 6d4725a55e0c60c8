"""Low-rank adapters in a model, by peft. The only importer of it.

peft puts its layers in the place of a model's linear ones; the model stays transformers' own object, with its class and
its forward, so that everything else need not know of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from warmstart.checkpoints.loaded_weights import is_head
from warmstart.randomness import derive

_NAME = "default"


class Adapter:
    """LoRA in `model`, which is changed in place: trained are the adapters, and the head in full.

    `targets`: full names of linear modules. The adapters are functions of `seed`; torch's generator is left as it was.
    B starts at zero, so that the model's outputs are what they were.
    """

    def __init__(
        self, model: PreTrainedModel, *, rank: int, alpha: float, dropout: float, targets: Sequence[str], seed: int
    ) -> None:
        head = [parameter for name, parameter in model.named_parameters() if is_head(name, model)]
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]  # a scale; peft's hint is narrower than its code
            lora_dropout=dropout,
            target_modules=list(targets),
            # GPT-2's "Conv1D" is a linear layer that keeps its matrix the other way round.
            fan_in_fan_out=all(type(model.get_submodule(name)).__name__ == "Conv1D" for name in targets),
        )
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derive(seed, "lora"))
            LoraModel(model, config, _NAME)
        del model.peft_config  # with it, transformers would take the model for one that only peft can save
        for parameter in head:
            parameter.requires_grad_(True)
        self._model = model
        self._layers: dict[str, Any] = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)
        }

    @contextmanager
    def merged(self) -> Iterator[None]:
        """In a block of this the model is a plain one, whose matrices hold W + alpha / rank · BA. After it each W has
        its own bits again, as it would not by subtracting."""
        own = {name: self._base(name).weight.data for name in self._layers}
        with torch.no_grad():
            for name, layer in self._layers.items():
                self._base(name).weight.data = own[name] + layer.get_delta_weight(_NAME).to(own[name].dtype)
                self._put(name, self._base(name))
        try:
            yield
        finally:
            for name, layer in self._layers.items():
                self._base(name).weight.data = own[name]
                self._put(name, layer)

    def keep_merged(self) -> None:
        """Make the model a plain one for good, all of whose weights ask for gradients."""
        with torch.no_grad():
            for name, layer in self._layers.items():
                base = self._base(name)
                base.weight.data = base.weight.data + layer.get_delta_weight(_NAME).to(base.weight.dtype)
                self._put(name, base)
        self._layers = {}
        for parameter in self._model.parameters():
            parameter.requires_grad_(True)

    def state(self) -> dict[str, torch.Tensor]:
        """What is trained, by name. The rest is the checkpoint's."""
        return {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state. Raises KeyError where it is of another model."""
        with torch.no_grad():
            for name, own in self.state().items():
                own.copy_(state[name])

    def _base(self, name: str) -> Any:
        return self._layers[name].get_base_layer()

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, own = name.rpartition(".")
        setattr(self._model.get_submodule(parent), own, module)
