"""`warmstart search`: the texts nearest to a query, among embeddings that `predict -o corpus.npy` wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import click

from warmstart.cli import console
from warmstart.cli.options import columns_option, device_option, option_option
from warmstart.display import escape_terminal
from warmstart.errors import DataError, UsageError


@click.command("search")
@click.argument("queries", nargs=-1)
@click.option("-m", "--model", default="starter-encoder", show_default=True, help="What made the embeddings.")
@click.option("-e", "--embeddings", required=True, help="The .npy file of embeddings to search in.")
@click.option("-i", "--input", "input_path", help="A file of queries; - reads stdin.")
@click.option("--texts", "texts_path", help="The file of rows that were embedded, to show those that are found.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many are wanted.")
@click.option("--similarity", default="cosine", show_default=True, type=click.Choice(["cosine", "dot"]))
@click.option("--json", "as_json", is_flag=True, help="JSONL, on a terminal too.")
@columns_option
@option_option
@device_option
def command(
    queries: tuple[str, ...],
    model: str,
    embeddings: str,
    input_path: str | None,
    texts_path: str | None,
    k: int,
    similarity: Any,
    as_json: bool,
    columns: dict[str, str],
    options: dict[str, Any],
    device: str,
) -> None:
    """Find the embeddings nearest to each query, exactly.

    \b
    warmstart predict -m starter-encoder -i texts.txt -o corpus.npy
    warmstart search "a funny film" -e corpus.npy --texts texts.txt
    """
    if bool(queries) == bool(input_path):
        raise UsageError(
            "search-queries",
            "queries are wanted, or a file of them, and not both",
            fix='e.g. warmstart search "a text"',
        )
    from warmstart.rows import read
    from warmstart.verbs.load import load
    from warmstart.verbs.search import search

    pipe = load(model, task="sentence-embedding", options=options, device=device)
    asked: list[Any] = list(queries)
    if input_path is not None:
        # Of a pair only the first text is a query.
        fields = tuple(field for field in pipe.task.fields if field.name == "text")
        asked = [row["text"] for row in read(input_path, fields=fields, columns=columns)]
    if not asked:
        return
    found = search(pipe(asked), embeddings, k=k, similarity=similarity)
    wanted = {hit.index for hits in found for hit in hits}
    texts = {} if texts_path is None else _texts(texts_path, wanted, pipe.task.fields, columns)
    for query, hits in zip(asked, found, strict=True):
        results = [
            {"index": hit.index, "score": hit.score, **({"text": texts[hit.index]} if texts else {})} for hit in hits
        ]
        if as_json or not console.is_terminal(sys.stdout):
            console.emit({"text": query, "results": results})
            continue
        console.show(console.paint(escape_terminal(query), "1", sys.stdout))
        for result in results:
            text = escape_terminal(str(result.get("text", "")))
            console.show(f"  {result['score']:7.4f}  {result['index']:>8}  {text[:100]}")


def _texts(path: str, wanted: set[int], fields: Any, columns: dict[str, str]) -> dict[int, str]:
    """The texts at these positions; the file is read once and not kept."""
    from warmstart.rows import read

    rows: Iterable[Any] = read(path, fields=tuple(f for f in fields if f.name == "text"), columns=columns)
    texts = {i: row["text"] for i, row in enumerate(rows) if i in wanted}
    if missing := sorted(wanted - texts.keys()):
        raise DataError(
            "texts-too-few",
            f"line {missing[-1]} of the embeddings was found, and the file of texts has fewer rows",
            where=path,
            value=missing[-1],
            fix="give the very file that was embedded",
        )
    return texts
