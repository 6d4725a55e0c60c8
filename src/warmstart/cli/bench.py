"""`warmstart bench`: how fast a checkpoint answers your rows on this machine, beside what you would use without us."""

from __future__ import annotations

import click

from warmstart.cli import console
from warmstart.cli.options import columns_option, device_option, precision_option, task_option


@click.command("bench")
@click.option("-m", "--model", required=True, help="A folder, run, hub id or starter name.")
@click.option("-i", "--input", "input_path", required=True, help="A file of rows; - reads stdin.")
@click.option("--rows", type=click.IntRange(min=1), default=1000, show_default=True, help="How many of its rows.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Runs of each contestant.")
@click.option("--threads", type=click.IntRange(min=1), help="For everybody; OMP_NUM_THREADS or every core otherwise.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line, with every single run.")
@task_option
@columns_option
@device_option
@precision_option
def command(
    model: str,
    input_path: str,
    rows: int,
    repeats: int,
    threads: int | None,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    device: str,
    precision: str | None,
) -> None:
    """Measure a checkpoint on your rows against transformers.pipeline at its best batch size and the textbook loop;
    embeddings and rerankers against sentence-transformers, if it is installed.

    \b
    warmstart bench -m starter -i reviews.jsonl
    """
    from warmstart.verbs.bench import bench

    line = console.Line()
    found = bench(
        model,
        input_path,
        task=task,
        rows=rows,
        repeats=repeats,
        threads=threads,
        device=device,
        precision=precision,
        columns=columns,
        progress=line.update,
    )
    cores = "thread" if found.threads == 1 else "threads"
    place = f"{found.threads} {cores}, {found.device}, {found.precision}"
    line.update(f"{found.rows:,} rows, {found.tokens:,} tokens, {place}", last=True)
    if as_json:
        console.emit(found.as_dict())
    else:
        for text in found.table():
            console.show(text)
