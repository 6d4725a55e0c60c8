"""From the recipe `Loss` to a task that learns by it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain

from warmstart.errors import UsageError, Where, did_you_mean
from warmstart.features import Array, Batch
from warmstart.tasks import Task, WeighsClasses
from warmstart.tasks.class_loss import ClassLoss
from warmstart.training.batches import Batches
from warmstart.training.recipes import Loss

log = logging.getLogger("warmstart")


def weigh_classes(batches: Batches[Batch], recipe: Loss | None) -> dict[str, float]:
    """Let the task of these batches learn by the recipe's loss; returns each label's weight, none without a recipe.

    Raises UsageError "loss-unsupported" for a task whose targets are no labels, "class-weight-unknown".
    """
    if recipe is None:
        return {}
    task: Task = batches.task
    if not isinstance(task, WeighsClasses):
        raise UsageError(
            "loss-unsupported",
            f"{task.name} has no labels that could weigh differently or be smoothed",
            where=Where(field="loss"),
            fix="leave the table loss out; it is for text-classification and token-classification",
        )
    counts = task.count_labels(chain.from_iterable(batches.features))
    if recipe.class_weights == "balanced":
        weights = balanced(task.labels, counts)
    else:
        weights = _given(task.labels, recipe.class_weights or {})
    batches.task = task.with_class_loss(ClassLoss(tuple(weights.values()), recipe.label_smoothing))
    if recipe.class_weights is not None:
        log.info("labels weigh %s", ", ".join(f"{label} {weight:.3g}" for label, weight in weights.items()))
    return weights


def balanced(labels: tuple[str, ...], counts: Array) -> dict[str, float]:
    """Weights by which all labels that occur weigh the same in all: targets / (labels · targets of the label).

    A label that does not occur weighs 1. The rule is scikit-learn's `compute_class_weight("balanced")`.

    >>> import numpy as np
    >>> balanced(("good", "bad", "none"), np.array([30, 10, 0]))
    {'good': 0.6666666666666666, 'bad': 2.0, 'none': 1.0}
    """
    occurring = int((counts > 0).sum())
    total = int(counts.sum())
    return {
        label: total / (occurring * int(count)) if count else 1.0 for label, count in zip(labels, counts, strict=True)
    }


def _given(labels: tuple[str, ...], given: Mapping[str, float]) -> dict[str, float]:
    for label in given:
        if label not in labels:
            raise UsageError(
                "class-weight-unknown",
                f"there is a weight for the label {label!r}, which the rows do not have",
                where=Where(field="loss.class_weights"),
                value=label,
                fix=did_you_mean(label, labels),
            )
    return {label: given.get(label, 1.0) for label in labels}
