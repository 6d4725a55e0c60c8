"""The two structs that travel between the modules.

    rows ──encode──▶ Feature ──plan, collate──▶ Batch ──forward──▶ outputs ──decode──▶ predictions

A `Feature` is one encoded piece of a row, a `Batch` some features stacked with padding. Both hold numpy arrays; the
torch runtime turns a batch's arrays into tensors (the same struct, other leaves) just before a model sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Feature:
    """One encoded piece of a row: a whole text, one window of a long one, one choice of several."""

    row: int  # position of the row in the caller's order, from 0
    part: int  # which piece of the row, from 0
    inputs: Mapping[str, Array]  # what the model reads; 1-D arrays run over tokens (T,)
    targets: Mapping[str, Array] = field(default_factory=dict)  # what the loss reads; empty unless train=True
    meta: Mapping[str, Any] = field(default_factory=dict)  # what decode reads; never reaches a model
    length: int = 0  # tokens, special tokens included: what planning counts
    wanted: Callable[[], bool] = always  # does anybody wait for its output: what generates asks between two tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Features side by side, each array padded by its own rule to the longest of this batch, or further."""

    features: tuple[Feature, ...]
    inputs: Mapping[str, Any]  # name -> (B, T) array, or tensor once a runtime has converted it
    targets: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.features)

    @property
    def tokens(self) -> int:
        """Real tokens in the batch, padding not counted."""
        return sum(feature.length for feature in self.features)


@dataclass(frozen=True, slots=True)
class Pad:
    """How one named array is padded. `value` fills; a per-token array runs over tokens, another has a fixed shape."""

    value: int | float = 0
    side: str = "right"
    per_token: bool = True
