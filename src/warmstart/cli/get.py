"""`warmstart get`: fetch a checkpoint now, so that everything later works offline."""

from __future__ import annotations

import click

from warmstart.cli import console


@click.command("get")
@click.argument("name")
def command(name: str) -> None:
    """Fetch checkpoint NAME into the cache, check it, and print its folder.

    \b
    warmstart get starter-encoder
    warmstart get distilbert-base-uncased-finetuned-sst-2-english
    """
    from warmstart.checkpoints import cache_folder, find, verify
    from warmstart.errors import CheckpointError

    found = find(name)
    verify(found.folder)
    if found.source == "starter" and not found.folder.is_relative_to(cache_folder()):
        raise CheckpointError(
            "cache-unwritable",
            "the cache takes nothing, so what was fetched is gone when this command ends",
            where=str(cache_folder()),
            fix="free space there, or set WARMSTART_CACHE to a folder you may write to",
        )
    console.show(str(found.folder))
