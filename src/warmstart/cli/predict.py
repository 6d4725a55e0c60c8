"""`warmstart predict`: texts, a file or a pipe in; a table on a terminal, JSONL elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from warmstart.cli import console
from warmstart.cli.generated import why_cut
from warmstart.cli.loading import open_pipeline
from warmstart.cli.options import columns_option, device_option, option_option, precision_option, task_option
from warmstart.display import escape_terminal
from warmstart.errors import UsageError


@click.command("predict")
@click.argument("texts", nargs=-1)
@click.option("-m", "--model", default="starter", show_default=True, help="A folder, run, hub id or starter name.")
@click.option("-i", "--input", "input_path", help="A file of rows; - reads stdin.")
@click.option("-o", "--output", help="A file: .jsonl, .csv, .parquet, or .npy for embeddings; else stdout.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Padded tokens a batch may hold.")
@click.option("--skip-errors", is_flag=True, help="Go on after a bad row; exit code 5 if there was any.")
@click.option("--stream", "streamed", is_flag=True, help="Show generated text as it comes.")
@click.option("--json", "as_json", is_flag=True, help="JSONL, on a terminal too.")
@task_option
@columns_option
@option_option
@device_option
@precision_option
def command(
    texts: tuple[str, ...],
    model: str,
    input_path: str | None,
    output: str | None,
    max_tokens: int | None,
    skip_errors: bool,
    streamed: bool,
    as_json: bool,
    task: str | None,
    columns: dict[str, str],
    options: dict[str, Any],
    device: str,
    precision: str | None,
) -> None:
    """Predict for TEXTS, for the rows of a file (-i), or for what is piped in.

    \b
    warmstart predict "I love LangChain!"
    warmstart predict -m runs/a -i reviews.csv -o predictions.jsonl
    cat reviews.txt | warmstart predict > predictions.jsonl
    """
    if streamed and (output or as_json):
        raise UsageError(
            "option-conflict",
            "--stream shows text as it comes, and -o and --json whole predictions",
            value="--stream",
            fix="leave one of the two out",
        )
    if skip_errors and output is not None and output.lower().endswith(".npy"):
        raise UsageError(
            "npy-skips",
            "a .npy file has one line for each row, by which search counts, and --skip-errors leaves rows out",
            where=output,
            value="--skip-errors",
            fix="write .parquet or .jsonl, which keep each row's fields beside its vector, or leave --skip-errors out",
        )
    if texts and input_path:
        raise UsageError("input-twice", "texts and -i are both given", fix="give one of the two")
    if not texts and not input_path:
        if console.is_terminal(sys.stdin):
            raise UsageError("input-missing", "there is nothing to predict for", fix='e.g. warmstart predict "a text"')
        input_path = "-"
    from warmstart import rows as warmstart_rows
    from warmstart.engine import MAX_TOKENS

    if output is not None and input_path is not None:
        warmstart_rows.check_output(output, [input_path])
    pipe = open_pipeline(
        model,
        precision=precision,
        data=None if input_path in (None, "-") else input_path,
        columns=columns,
        task=task,
        options=options,
        device=device,
    )
    stream = None
    names = tuple(field.name for field in pipe.task.fields if field.text and not field.target)
    if texts:
        rows: Any = list(warmstart_rows.texts(list(texts), names=names))
    else:
        rows = stream = warmstart_rows.read(
            input_path or "-", fields=pipe.task.fields, columns=columns, on_error="skip" if skip_errors else "fail"
        )
    if streamed:
        _show_streams(pipe, rows)
    else:
        _predict(pipe, rows, stream, input_path, output, as_json, max_tokens or MAX_TOKENS)
    if stream is not None and stream.skipped:
        for error in stream.errors:
            console.say(str(error))
        console.error(f"{stream.skipped:,} rows were skipped")
        raise click.exceptions.Exit(5)


def _show_streams(pipe: Any, rows: Any) -> None:
    """Each row's text as it grows, and an end of the line after it; then what was odd about it, beside the output."""
    for row in rows:
        stream = pipe.stream(row)
        place = f"{row.where}: " if str(row.where) else ""
        try:
            for piece in stream:
                console.write(piece)
        finally:
            console.show("")
            if stream.truncated:
                console.say(f"{place}the text is longer than {pipe.task.prompt_limit:,} tokens and was cut")
            if stream.flags:
                console.say(f"{place}{', '.join(stream.flags)}")
        if (cut := why_cut(stream, room="A shorter prompt leaves more")) is not None:
            console.say(f"{place}{cut}")


def _predict(
    pipe: Any, rows: Any, stream: Any, input_path: str | None, output: str | None, as_json: bool, max_tokens: int
) -> None:
    from warmstart import rows as warmstart_rows
    from warmstart.tasks import as_dict

    names = tuple(field.name for field in pipe.task.fields if field.text and not field.target)
    seen: deque[Any] = deque()
    predictions = pipe.predict_rows(_remember(rows, seen), max_tokens=max_tokens)
    if output is None and not as_json and console.is_terminal(sys.stdout):
        for prediction in predictions:
            show_prediction(seen.popleft(), as_dict(prediction), names)
    else:
        inputs = [input_path] if input_path else []
        with warmstart_rows.open_writer(
            output or "-", inputs=inputs, columns=stream.columns if stream else None
        ) as writer:
            for prediction in predictions:
                writer.write(as_dict(prediction), seen.popleft())


def _remember(rows: Any, seen: deque[Any]) -> Iterator[Any]:
    """The rows as they pass, kept until their predictions come (a window of rows at most)."""
    for row in rows:
        seen.append(row)
        yield row


def show_prediction(row: Any, prediction: dict[str, Any], names: tuple[str, ...] = ("text",)) -> None:
    """A prediction for a person: the row's texts, by the `names` of their fields, and a bar for each best score."""
    width = shutil.get_terminal_size().columns
    texts = [row[name] for name in names if row.get(name)] or [_words(row)]
    text = " / ".join(escape_terminal(str(text)) for text in texts)
    console.show(console.paint(text if len(text) <= width else text[: max(1, width - 1)] + "…", "1", sys.stdout))
    if isinstance(prediction.get("scores"), dict):
        _show_scores(prediction["scores"], prediction["label"])
    else:
        for name, value in prediction.items():
            if name not in ("tokens", "truncated", "flags"):
                console.show(f"  {name}  {_brief(value)}")
    remarks = [*prediction["flags"], *(["cut to the limit"] if prediction["truncated"] else [])]
    console.show(console.paint(f"  {prediction['tokens']} tokens{''.join(', ' + r for r in remarks)}", "2", sys.stdout))


def _words(row: Any) -> str:
    """The text of a row that has none but its words."""
    lists = (value for value in row.values() if isinstance(value, list) and all(isinstance(v, str) for v in value))
    return " ".join(next(lists, []))


def _show_scores(scores: dict[str, float], label: str | list[str]) -> None:
    chosen = label if isinstance(label, list) else [label]
    for name, score in sorted(scores.items(), key=lambda item: -item[1])[:5]:
        shown = escape_terminal(name)[:28]
        filled = console.bar(score, beside=40) if 0 <= score <= 1 and len(scores) > 1 else ""
        style = "32" if name in chosen else "2"
        console.show(f"  {shown:<28} {console.paint(filled, style, sys.stdout)} {score:.4f}")


def _brief(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(_brief(part) for part in value.values())
    if isinstance(value, float):
        return f"{value:.4f}"
    if not isinstance(value, list):
        return escape_terminal(str(value))
    if not value:
        return "none"
    if isinstance(value[0], dict):
        return "".join(f"\n    {_brief(part)}" for part in value)
    shown = ", ".join(f"{part:.4f}" if isinstance(part, float) else escape_terminal(str(part)) for part in value[:6])
    return f"[{shown}{', …' if len(value) > 6 else ''}] {len(value)} values"
