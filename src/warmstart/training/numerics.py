"""The numeric setting of a run, and of whatever computes one of its steps again."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

log = logging.getLogger("warmstart")

_GRAIN = 32_768  # the least numbers that torch gives a thread of their own
_SOFT = 1  # of omp_pause_resource_all: whatever the program has set stays


@contextmanager
def numerics(device: str) -> Iterator[None]:
    """The numeric setting of a run; what the process had before is restored after it.

    AdamW's moments of rows that no batch touches decay into denormals, which a CPU computes some 40 times slower;
    flushing them to zero changes only values below 1.2e-38.
    """
    before = _flushes_denormals()
    with torch.random.fork_rng([device] if device.startswith("cuda") else []):
        _flush_denormals(True)
        try:
            yield
        finally:
            _flush_denormals(before)


def _flush_denormals(on: bool) -> None:
    """In all threads that compute for this one. Torch sets the calling thread, and those it makes get what it has.

    So where the process has computed in parallel before, its threads are let go and made anew by the next operation.
    Where OpenMP cannot do that, and does not hand the setting on by itself, it is said.
    """
    if torch.set_flush_denormal(on) and not _all_threads_flush(on):
        _end_threads()
        if not _all_threads_flush(on):
            log.warning(
                "denormal numbers are flushed in some threads only, for this process had computed in parallel before: "
                "a run may take longer, and differ in values below 1.2e-38; train in a process of its own, or with one "
                "thread (OMP_NUM_THREADS=1)"
            )


def _flushes_denormals() -> bool:
    """Torch can set this, and not say it: divide the smallest normal number and see."""
    return not _kept(1)


def _all_threads_flush(on: bool) -> bool:
    """Whether every thread flushes (`on`), or none."""
    numbers = _GRAIN * torch.get_num_threads()
    return _kept(numbers) == (0 if on else numbers)


def _kept(numbers: int) -> int:
    """Of so many denormal results, how many are not zero."""
    smallest = torch.full((numbers,), torch.finfo(torch.float32).tiny, device="cpu")
    return int(torch.count_nonzero((smallest / 4).view(torch.int32)))  # bits: a comparison may flush as well


def _end_threads() -> None:
    """End the threads that OpenMP keeps for the calling one, by its `omp_pause_resource_all` (since OpenMP 5.0)."""
    try:
        ctypes.CDLL(None).omp_pause_resource_all(_SOFT)
    except (AttributeError, OSError, TypeError):  # an older OpenMP, another library, or Windows
        log.debug("OpenMP's threads cannot be ended here")
