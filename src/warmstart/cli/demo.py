"""`warmstart demo`: the whole road on real data, with no model hub."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from warmstart.cli import console


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run directory; runs/demo-TIME otherwise.")
def command(output: Path | None) -> None:
    """Fine-tune, evaluate, save, reload and predict on real movie reviews.

    The last line of stdout is JSON: the evaluation, with accuracy, seconds and the saved folder.

    \b
    warmstart demo -o runs/demo
    """
    from warmstart.cli.predict import show_prediction
    from warmstart.cli.train import progress_line, show_metrics
    from warmstart.tasks import as_dict
    from warmstart.verbs.demo import demo

    output = output or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    result = demo(output, progress=progress_line(), say=console.say)
    show_metrics(result.evaluation)
    console.show("")
    for text, prediction in result.predictions.items():
        show_prediction({"text": text}, as_dict(prediction))
    accuracy = result.evaluation.metrics["accuracy"].value
    console.emit(
        {
            **result.evaluation.as_dict(),
            "accuracy": accuracy,
            "seconds": round(result.seconds, 1),
            "model": str(result.run.model),
        }
    )
