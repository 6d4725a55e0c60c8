"""The logits of a position-wise head at some positions only, from a model that was written to give them everywhere.

A masked language model's head multiplies each token's state by the whole vocabulary. Where one token counts, or 15 % of
them, the rest is computed for nothing: most of the work of a small encoder.
"""

from __future__ import annotations

import copy
from typing import Any


def logits_at(model: Any, inputs: Any, chosen: Any) -> Any:
    """The logits (N, V) of the N places where `chosen` (B, T) is true, in the order of rows, then of tokens.

    The model's own forward runs, on a shallow copy of it whose encoder hands on the chosen states alone. Nothing is
    written to the model, so threads may share it, and gradients reach its parameters. A model that wraps another (an
    adapter's, say) computes all logits, from which the chosen are taken.
    """
    base = model.base_model
    names = [name for name, child in model.named_children() if child is base]
    outside = copy.copy(model)
    # The modules of a copy stand in the original's own dict: it gets another one.
    outside.__dict__["_modules"] = model._modules | {name: _Chosen(base, chosen) for name in names}
    logits = outside(**inputs).logits
    return logits[chosen] if logits.shape[:2] == chosen.shape else logits[0]


class _Chosen:
    """Stands where the encoder does, and hands on the states (1, N, H) of the chosen places instead of (B, T, H)."""

    def __init__(self, base: Any, chosen: Any) -> None:
        self._base, self._chosen = base, chosen

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self._base(*args, **kwargs)
        if "last_hidden_state" in outputs:
            outputs["last_hidden_state"] = outputs["last_hidden_state"][self._chosen].unsqueeze(0)
        return outputs

    __call__ = _hand_on  # with the arguments of the encoder's forward, whatever they are

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)  # a head may read the encoder's embeddings
