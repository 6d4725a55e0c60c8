"""What executes a batch, and the walk from rows to predictions. Importing this imports no torch."""

from __future__ import annotations

from typing import Any

from warmstart.engine.predict import MAX_TOKENS, Runtime, by_row, decode_row, predict, prepare, run_batch
from warmstart.tasks import Task

__all__ = ["MAX_TOKENS", "Runtime", "by_row", "decode_row", "predict", "prepare", "resolve_device", "run_batch", "torch_runtime"]


def torch_runtime(model: Any, task: Task, *, device: str = "auto") -> Runtime:
    """The reference runtime: the model itself, moved to `device` ("auto", "cpu", "cuda", "cuda:1", "mps"), and
    padding-free from here on where its architecture allows it (`warmstart.engine.unpad`).

    Raises UsageError "device-unknown" or "device-unavailable".
    """
    from warmstart.engine.devices import resolve
    from warmstart.engine.runtime_torch import TorchRuntime
    from warmstart.engine.unpad import unpad_if_supported

    resolved = resolve(device)
    return TorchRuntime(model=unpad_if_supported(model.to(resolved)), task=task, device=resolved)


def resolve_device(name: str) -> str:
    """See `warmstart.engine.devices.resolve`."""
    from warmstart.engine import devices

    return devices.resolve(name)
