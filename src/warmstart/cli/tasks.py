"""`warmstart tasks`: what can be done, with the row fields each task reads and what it predicts."""

from __future__ import annotations

import click

from warmstart.cli import console


@click.command("tasks")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def command(as_json: bool) -> None:
    """List the tasks, their row fields and predictions.

    \b
    warmstart tasks --json
    """
    from warmstart.tasks import ALIASES, TASKS, prediction_fields

    described = [
        {
            "name": name,
            "row": [field.name for field in task.fields],
            "prediction": list(prediction_fields(task.prediction)),
        }
        for name, task in TASKS.items()
    ]
    if as_json:
        console.emit(described)
        return
    for name, task in TASKS.items():
        aliases = [alias for alias, target in ALIASES.items() if target == name]
        console.show(name + (f"  (also {', '.join(aliases)})" if aliases else ""))
        for field in task.fields:
            kind = "to train and evaluate" if field.target else "" if field.required else "optional"
            console.show(f"  {field.name:<12} {field.doc}{f' ({kind})' if kind else ''}")
        console.show(f"  → {', '.join(prediction_fields(task.prediction))}")
