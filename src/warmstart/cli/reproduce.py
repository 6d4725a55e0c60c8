"""`warmstart reproduce`: runs a run again and says whether it came out the same."""

from __future__ import annotations

from pathlib import Path

import click

from warmstart.cli import console
from warmstart.cli.train import progress_line, share_or_path


@click.command("reproduce")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-d", "--data", help="Where the training rows are now, if elsewhere than they were.")
@click.option("--validation", help="Where the validation rows are now, or the share that was held out.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the new run there.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line on stdout.")
@click.pass_context
def command(
    context: click.Context, run: Path, data: str | None, validation: str | None, output: Path | None, as_json: bool
) -> None:
    """Run RUN again, from its own record, and compare.

    \b
    warmstart reproduce runs/a

    The answer is bit-identical, statistically equal (both exit code 0), or different because … (exit code 1).
    """
    from warmstart.training.lineage import as_records
    from warmstart.verbs.reproduce import reproduce

    found = reproduce(
        run,
        data=data,
        validation=None if validation is None else share_or_path(validation),
        output=output,
        progress=progress_line(),
    )
    if as_json:
        answer = {"answer": found.answer, "reasons": list(found.reasons)}
        console.emit({**answer, "differences": as_records(found.differences)})
    else:
        console.show(f"{found.answer} because" if found.answer == "different" else found.answer)
        for reason in found.reasons:
            console.show(f"  {reason}")
    if found.answer == "different":
        context.exit(1)
