"""`warmstart doctor`: is this machine and installation ready, and what would be used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from warmstart.cli import console
from warmstart.display import escape_terminal

FREE_BYTES_WANTED = 2_000_000_000


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
def command(as_json: bool) -> None:
    """Check versions, devices, cache and what is cached; exit 1 if something would not work.

    \b
    warmstart doctor
    """
    import torch

    from warmstart.checkpoints import cache_folder, cached_names
    from warmstart.engine.devices import available
    from warmstart.provenance import environment

    cache = cache_folder()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    problems = []
    if free < FREE_BYTES_WANTED:
        problems.append(f"only {free / 1e9:.1f} GB are free for the cache; set WARMSTART_CACHE to a larger disk")
    if not _is_writable(existing):
        problems.append(f"the cache {cache} cannot be written; set WARMSTART_CACHE to a folder you may write to")
    facts = {
        **environment(),
        "threads": torch.get_num_threads(),
        "devices": available(),
        "cache": str(cache),
        "cached": list(cached_names()),
        "problems": problems,
    }
    if as_json:
        console.emit(facts)
    else:
        for name, value in facts.items():
            console.show(f"{name:<14} {escape_terminal(_text(value))}")
    if problems:
        raise click.exceptions.Exit(1)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items() if part is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)
