"""Counter-based randomness: every random choice is a function of (seed, what it is for, where it stands).

No generator is carried along, so nothing has to be saved to resume a run, and neither workers nor prefetching can
change what an example sees. Keys are hashed with BLAKE2b and drive numpy's Philox (Salmon et al., "Parallel Random
Numbers: As Easy as 1, 2, 3", SC 2011).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def derive(seed: int, *path: str | int) -> int:
    """A 63-bit seed for the place that `path` names, e.g. `derive(0, "dropout", step)`.

    >>> derive(0, "order", 1) == derive(0, "order", 1), derive(0, "order", 1) == derive(0, "order", 2)
    (True, False)
    """
    key = "\x1f".join([str(seed), *(f"str:{p}" if isinstance(p, str) else f"int:{int(p)}" for p in path)])
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A numpy generator for the place that `path` names; the same path always gives the same stream."""
    return np.random.Generator(np.random.Philox(derive(seed, *path)))


def permutation(n: int, seed: int, *path: str | int) -> npt.NDArray[np.int64]:
    """The order of `n` things at `path`, shape (n,)."""
    return generator(seed, *path).permutation(n)
