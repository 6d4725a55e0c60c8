"""Before the first step: do rows in one batch give the gradient that they give one by one?

If so, `accumulate` changes memory and nothing else. It fails where a model's outputs for a row depend on the rows
beside it, or a loss is a mean where the loop expects a sum: transformers 5.23's Trainer, for one, trains encoder heads
with gradients that are larger by the number of accumulated batches.
"""

from __future__ import annotations

import logging
import math

import torch

from warmstart.batching import collate
from warmstart.engine.runtime_torch import to_tensors
from warmstart.errors import TrainingError, is_out_of_memory
from warmstart.features import Batch, Feature
from warmstart.tasks import Task
from warmstart.training.batches import Batches
from warmstart.training.config import TrainConfig

log = logging.getLogger("warmstart")

# Sums in another order, and padding, move a float32 gradient by about 1e-6 of its norm; a wrong weight by its own size.
TOLERANCE = 1e-3
# So many rows are compared, of so many tokens together: it takes about as long as two steps, whatever the texts.
ROWS, TOKENS = 8, 1024


def check_additive(
    model: torch.nn.Module, task: Task, batches: Batches[Batch], config: TrainConfig, *, device: str
) -> float | None:
    """Compare the gradients of B x 1 and 1 x B, without dropout and in float32, on rows of the first batches: as many
    as a batch has, at most `ROWS`, of at most `TOKENS` tokens; two at least.

    Returns the difference's norm, relative to the gradient's; None where nothing could be compared (one row, rows that
    learn from each other, a gradient of zero, rows that memory does not hold). Neither weights nor generators are
    changed. Raises TrainingError "gradient-not-additive" if the run accumulates; warns if it does not.
    """
    rows = _compared(batches, min(ROWS, config.batch_size))
    if task.couples_rows or len(rows) < 2:
        return None
    training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        model.eval()
        try:
            together = _gradient(model, task, [[feature for row in rows for feature in row]], device)
            apart = _gradient(model, task, rows, device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            model.zero_grad(set_to_none=True)
            log.warning("memory does not hold the first %d rows together: no gradients were compared", len(rows))
            return None  # the loop tells of it, or cuts
        finally:
            for module in training:
                module.training = True
    norm, difference = _norm(together), _norm([a - b for a, b in zip(together, apart, strict=True)])
    if not (math.isfinite(norm) and math.isfinite(difference)) or norm == 0:
        return None  # the loop tells of what is not finite, with its step
    if difference <= TOLERANCE * norm:
        return difference / norm
    what = (
        f"{len(rows)} rows in one batch do not give the gradient they give one by one: "
        f"it differs by {difference / norm:.2%}"
    )
    if config.accumulate > 1:
        raise TrainingError(
            "gradient-not-additive",
            what,
            value=f"accumulate={config.accumulate}",
            fix="train without accumulate; this model's outputs for a row depend on the rows beside it",
        )
    log.warning("%s; results will depend on batch_size", what)
    return difference / norm


def _compared(batches: Batches[Batch], most: int) -> list[list[Feature]]:
    """The features of the first rows of an epoch, as they stand in its batches."""
    found: list[list[Feature]] = []
    tokens = 0
    for row in (row for batch in batches.plan[:2] for row in batch):
        features = batches.features[row]
        tokens += sum(feature.length for feature in features)
        if len(found) >= 2 and (len(found) >= most or tokens > TOKENS):
            break
        found.append(features)
    return found


def _gradient(model: torch.nn.Module, task: Task, parts: list[list[Feature]], device: str) -> list[torch.Tensor]:
    """The gradient of the weighted mean loss over all parts, a batch each."""
    model.zero_grad(set_to_none=True)
    weight = 0.0
    for features in parts:
        batch = to_tensors(collate(features, task.pads), device)
        losses, weights = task.loss(task.forward(model, batch), batch)
        (losses.float() * weights).sum().backward()
        weight += weights.sum().item()
    found = [p.grad / max(weight, 1e-12) for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return found


def _norm(tensors: list[torch.Tensor]) -> float:
    return torch.nn.utils.get_total_norm(tensors).item() if tensors else 0.0
