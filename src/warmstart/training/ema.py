"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class Average:
    """Follows the parameters of `model` that ask for a gradient; all others are the same at every step.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with exponential
    weights; the rule of the first steps stands at `training.recipes.WeightAverage`.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights after `step`, from 1."""
        kept = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach() for p in self._weights.values()]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights in a block of this, and its own bits again after it."""
        own = {name: p.detach().clone() for name, p in self._weights.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)

    def keep(self) -> None:
        """Make the average the model's weights, for good."""
        self._put(self._average)

    def state(self) -> dict[str, torch.Tensor]:
        """The average, by the parameters' names."""
        return dict(self._average)

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a state. Raises KeyError where it is of another model."""
        for name, values in self._average.items():
            values.copy_(state[name])

    def _put(self, values: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._weights.items():
                parameter.copy_(values[name])
