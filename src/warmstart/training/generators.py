"""The state of random generators as plain values: for loops that draw from generators rather than derive seeds.

`ws.train` needs none of it (`randomness.py`). A person's own loop may draw from torch's, numpy's and Python's global
generators, and from generators of its own.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch

from warmstart.errors import UsageError

Generator: TypeAlias = torch.Generator | np.random.Generator | random.Random


def capture(own: Mapping[str, Generator]) -> dict[str, Any]:
    """The states of the global generators and of `own`, as a tree that `state_files.pack` takes."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
        "numpy": _plain(np.random.get_state(legacy=False)),
        "python": random.getstate(),
        "own": {name: _state(name, generator) for name, generator in own.items()},
    }


def restore(states: Mapping[str, Any], own: Mapping[str, Generator]) -> None:
    """Put every generator where it was at `capture`.

    Raises KeyError, TypeError, ValueError or RuntimeError for states that are not those of these generators.
    """
    if states["own"].keys() != own.keys():
        raise KeyError(f"generators {sorted(states['own'])} were saved, {sorted(own)} are given")
    for name, generator in own.items():
        _set(name, generator, states["own"][name])
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(_arrays(states["numpy"]))
    random.setstate(states["python"])


def _state(name: str, generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    if isinstance(generator, random.Random):
        return generator.getstate()
    raise _unknown(name, generator)


def _set(name: str, generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _arrays(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        raise _unknown(name, generator)


def _plain(state: Any) -> Any:
    """Numpy's states are nested dicts with arrays of integers of up to 64 bits, which JSON holds as they are."""
    if isinstance(state, np.ndarray):
        return {"dtype": str(state.dtype), "values": state.tolist()}
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.item() if isinstance(state, np.generic) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, Mapping):
        if state.keys() == {"dtype", "values"}:
            return np.array(state["values"], dtype=state["dtype"])
        return {key: _arrays(value) for key, value in state.items()}
    return state


def _unknown(name: str, generator: object) -> UsageError:
    return UsageError(
        "generator-unknown",
        f"{name} is no generator whose state can be saved: it is of type {type(generator).__name__}",
        value=name,
        fix="give a torch.Generator, a numpy.random.Generator or a random.Random",
    )
