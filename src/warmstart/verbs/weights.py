"""Comparing the weights of two saved models, tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open


def weights_digest(folder: Path) -> str:
    """SHA-256 over the safetensors files of a folder, by name: what `sha256sum` gives where there is one file."""
    files = sorted(folder.glob("*.safetensors"))
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def differing_tensors(one: Path, other: Path, *, most: int = 5) -> list[str]:
    """The first tensors whose bytes differ between two folders, with the largest difference; none if all are equal."""
    if weights_digest(one) == weights_digest(other):
        return []
    left, right = dict(_tensors(one)), dict(_tensors(other))
    found = [f"{name} is in one of them only" for name in sorted(left.keys() ^ right.keys())]
    for name in (name for name in left if name in right):
        if left[name].shape != right[name].shape:
            found.append(f"{name} has shape {tuple(right[name].shape)}, not {tuple(left[name].shape)}")
        elif not torch.equal(left[name], right[name]):
            largest = (left[name].double() - right[name].double()).abs().max().item()
            found.append(f"{name} differs, by {largest:.3g} at most")
    more = len(found) - most
    found = found or ["the files differ, and no tensor does"]
    return [*found[:most], *([f"and {more} more tensors"] if more > 0 else [])]


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 – not a dict
                yield name, file.get_tensor(name)
