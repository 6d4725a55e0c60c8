"""A cross entropy in which labels weigh differently and targets are smoothed, for training alone.

Evaluation judges predictions, and knows nothing of it: losses with and without it are comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from warmstart.features import Array, Feature

IGNORED = -100  # the target of what is not trained: torch's own number for it


@dataclass(frozen=True)
class ClassLoss:
    """`weights`: each label's, in the model's order, all above 0; `smoothing`: the share of a target that goes to all
    labels alike (Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016)."""

    weights: tuple[float, ...]
    smoothing: float = 0.0

    def loss(self, logits: Any, targets: Any) -> tuple[Any, Any]:
        """(N, labels) and (N,) → each target's loss times its weight, and its weight; both (N,), 0 where ignored.

        The sum of the first by the sum of the second is torch's `cross_entropy(weight=…, label_smoothing=…)`.
        """
        import torch
        import torch.nn.functional as F

        # Many weights are summed, which half precision cannot.
        weights = torch.tensor(
            self.weights, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device
        )
        logits = logits.to(weights.dtype)
        losses = F.cross_entropy(
            logits, targets, weight=weights, label_smoothing=self.smoothing, ignore_index=IGNORED, reduction="none"
        )
        return losses, weights[targets.clamp(min=0)] * (targets != IGNORED)


def count_labels(features: Iterable[Feature], labels: int) -> Array:
    """How often each label is a target of these features: (labels,)."""
    counts = np.zeros(labels, dtype=np.int64)
    for feature in features:
        targets = feature.targets["labels"].reshape(-1)
        counts += np.bincount(targets[targets != IGNORED], minlength=labels)
    return counts
