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
    from warmstart.checkpoints import find, verify

    found = find(name)
    verify(found.folder)
    console.show(str(found.folder))
