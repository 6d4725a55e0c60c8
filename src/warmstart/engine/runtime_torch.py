"""The reference runtime: a PyTorch model on a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from warmstart.features import Array, Batch
from warmstart.tasks import Task


@dataclass(frozen=True)
class TorchRuntime:
    """Runs batches through `model`, which stays the person's own object: its mode is restored after each batch."""

    model: torch.nn.Module
    task: Task
    device: str

    def run(self, batch: Batch) -> dict[str, Array]:
        """Each output of `task.infer` as a float32 (or integer) array whose first axis is the batch's features.

        Raises MemoryError where the device has not enough memory for the batch.
        """
        try:
            with torch.inference_mode(), evaluating(self.model):
                outputs = self.task.infer(self.model, to_tensors(batch, self.device))
                return {name: _to_array(output) for name, output in outputs.items()}
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error


def to_tensors(batch: Batch, device: str) -> Batch:
    """The same batch with tensors on `device` for leaves."""
    return dataclasses.replace(
        batch,
        inputs={name: torch.from_numpy(array).to(device) for name, array in batch.inputs.items()},
        targets={name: torch.from_numpy(array).to(device) for name, array in batch.targets.items()},
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode, for as long as the block lasts."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _to_array(output: torch.Tensor) -> Array:
    return (output.float() if output.is_floating_point() else output).cpu().numpy()
