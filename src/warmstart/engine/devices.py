"""Where a model runs: `--device auto|cpu|cuda|mps`."""

from __future__ import annotations

import re

import torch

from warmstart.errors import UsageError


def available() -> list[str]:
    """The devices of this machine, best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def resolve(name: str) -> str:
    """A device that exists: "auto" is the best there is.

    Raises UsageError "device-unknown" for a name that is none, "device-unavailable" for one this machine has not.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise UsageError(
            "device-unknown", f"there is no device {name!r}", value=name, fix="use auto, cpu, cuda, cuda:N or mps"
        )
    here = available()
    if name == "auto":
        return here[0]
    exact = "cuda:0" if name == "cuda" else name
    if exact not in here:
        raise UsageError(
            "device-unavailable",
            f"this machine has no {name}",
            value=name,
            fix=f"use one of: auto, {', '.join(here)}",
        )
    return exact
