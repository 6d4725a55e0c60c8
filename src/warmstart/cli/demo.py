"""`warmstart demo`: the whole road on real data, with no model hub."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from warmstart.cli import console


@click.command("demo")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The run directory; runs/demo-TIME otherwise.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A training setting, e.g. epochs=3.")
def command(output: Path | None, settings: tuple[str, ...]) -> None:
    """Fine-tune, evaluate, save, reload and predict on real movie reviews.

    The last line of stdout is JSON: the evaluation, with accuracy, seconds and the saved folder.

    \b
    warmstart demo -o runs/demo
    """
    from warmstart.cli.predict import show_prediction
    from warmstart.cli.train import progress_line, show_metrics
    from warmstart.tasks import as_dict
    from warmstart.training.config import read_config
    from warmstart.verbs.demo import SETTINGS, demo

    output = output or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    config = read_config(None, [*SETTINGS, *settings])
    result = demo(output, config=config, progress=progress_line(), say=console.say)
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
