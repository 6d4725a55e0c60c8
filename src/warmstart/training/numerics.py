"""The numeric setting of a run, and of whatever computes one of its steps again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def numerics(device: str) -> Iterator[None]:
    """The numeric setting of a run; what the process had before is restored after it.

    AdamW's moments of rows that no batch touches decay into denormals, which a CPU computes some 40 times slower;
    flushing them to zero changes only values below 1.2e-38.
    """
    before = _flushes_denormals()
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    """Torch can set this, and not say it: divide the smallest normal number and see."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny])
    return bool((smallest / 4 == 0).item())
