"""What a run is made from, as one flat table; and how two such tables differ.

Two runs with equal `identity` have the same mathematics and the same randomness. With equal `numerics` too, they have
the same bits: threads, processor and device change the order of sums, hence the last digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from warmstart.errors import UsageError, shorten

# Settings that change neither the mathematics nor the order: when and where to save, who collates, what is kept.
_WITHOUT_EFFECT = frozenset({"workers", "save_every", "keep", "device", "gradient_checkpointing"})
# The packages whose code computes, tokenizes or decides.
_PACKAGES = ("warmstart", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True)
class Difference:
    """One entry of the table that is not what it was; None: it was not there, or is not there any more."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name}: {_short(self.before)} → {_short(self.now)}"


def numerics(device: str) -> dict[str, Any]:
    """What decides the last digits beside the recipe, for the provenance of a run."""
    return {"device": device, "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability()}


def identity(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a run, by dotted names. `config`: the settings of [train]; `provenance`: as the run records it."""
    data = provenance.get("data", {})
    packages = provenance.get("environment", {}).get("packages", {})
    return {
        "checkpoint": provenance.get("checkpoint", {}).get("digest"),
        **{f"data.{part}": data.get(part, {}).get("ordered") for part in ("train", "validation")},
        **{f"data.{part}.rows": data.get(part, {}).get("rows") for part in ("train", "validation")},
        **{f"task.{key}": value for key, value in provenance.get("task", {}).items()},
        **{f"train.{key}": value for key, value in _flat(config) if key not in _WITHOUT_EFFECT},
        **{name: provenance[name] for name in ("optimizer", "scheduler") if name in provenance},  # a person's own
        **{f"version.{name}": packages.get(name) for name in (*_PACKAGES, *(["peft"] if "lora" in config else []))},
    }


def numerics_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The table of what decides the last digits, from a provenance."""
    environment = provenance.get("environment", {})
    cpu = environment.get("cpu", {})
    return {
        **{f"numerics.{key}": value for key, value in provenance.get("numerics", {}).items()},
        "cpu.model": cpu.get("model"),
        "cpu.flags": cpu.get("flags"),
        "python": environment.get("python"),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """The entries in which two tables differ, by name. Values are compared as JSON gives them back."""
    before, now = _plain(before), _plain(now)
    names = sorted({*before, *now})
    return [Difference(n, before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)]


def refused(found: Sequence[Difference], where: str) -> UsageError:
    """The error for a run that cannot be resumed as it was begun: "resume-differs"."""
    listed = "\n".join(f"    {difference}" for difference in found)
    return UsageError(
        "resume-differs",
        f"this directory holds a run that was begun with something else:\n{listed}",
        where=where,
        value=", ".join(difference.name for difference in found),
        fix="train with what it was begun with, choose another -o, or go on all the same with --force (force=True), "
        "which is recorded",
    )


def as_records(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences as plain values, for attempts.jsonl and provenance.json."""
    return [asdict(difference) for difference in found]


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings by their keys, those of recipes as `lora.rank`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _plain(table: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(table), default=str))
    return plain


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest
        return f"{value[:12]}…"
    return "none" if value is None else shorten(value)
