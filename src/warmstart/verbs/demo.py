"""The demonstration: a real checkpoint and real reviews, from the first training step to the last prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warmstart.checkpoints import cache_folder, movie_snippets
from warmstart.errors import Where
from warmstart.evaluation import Evaluation
from warmstart.pipeline import Pipeline
from warmstart.rows import Row, bucket
from warmstart.training.config import TrainConfig
from warmstart.verbs.evaluate import evaluate
from warmstart.verbs.fitting import Progress
from warmstart.verbs.load import load
from warmstart.verbs.train import Run, train

SENTENCES = (
    "I love LangChain!",
    "The plot drags, and the jokes fall flat.",
    "A quiet, moving film with a wonderful cast.",
    "I want those two hours of my life back.",
)

# One pass is enough for the demonstration: the second adds about one point and doubles the time.
SETTINGS = ("epochs=1",)


@dataclass(frozen=True)
class Demo:
    """What the demonstration gives. `seconds`: from the first training step to the last prediction."""

    run: Run
    evaluation: Evaluation  # of the reloaded checkpoint, on the test part
    predictions: Mapping[str, Any]
    seconds: float


def movie_reviews(split: str) -> list[Row]:
    """The movie-review snippets of one split: "train", "validation" or "test".

    The label is the sign of the crowd's mean rating; snippets rated 0 are left out. The split is `rows.bucket`'s.
    """
    parts = {9: "test", 8: "validation"}
    path = movie_snippets(cache_folder())
    rows = []
    for number, line in enumerate(path.read_text(encoding="latin-1").split("\n"), start=1):
        if not line.strip():
            continue
        _, rating, text = line.rstrip("\r").split("\t")
        if float(rating) and parts.get(bucket(text), "train") == split:
            label = "POSITIVE" if float(rating) > 0 else "NEGATIVE"
            rows.append(Row({"text": text.strip(), "label": label}, Where(source=str(path), line=number)))
    return rows


def demo(
    output: str | Path,
    *,
    config: TrainConfig,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] = print,
) -> Demo:
    """Fine-tune `starter-encoder` on movie reviews, save, reload, evaluate on the test part and predict.

    `output` becomes a run directory. `say` gets a sentence for each stage.
    """
    rows, held_out, test = (movie_reviews(split) for split in ("train", "validation", "test"))
    say(f"{len(rows):,} reviews to train on, {len(held_out):,} to choose by, {len(test):,} to test on")
    clock = _Clock(progress)
    run = train("starter-encoder", rows, output=output, validation=held_out, config=config, progress=clock.update)
    say(f"saved a standard Hugging Face checkpoint: {run.model}")
    pipe: Pipeline = load(run.model)
    evaluation = evaluate(pipe, test)
    predictions = dict(zip(SENTENCES, pipe(list(SENTENCES)), strict=True))
    return Demo(run, evaluation, predictions, clock.seconds())


@dataclass
class _Clock:
    """Passes progress on, and remembers when the first step began."""

    progress: Callable[[Progress], None] | None
    started: float | None = None

    def update(self, progress: Progress) -> None:
        if self.started is None:
            self.started = time.monotonic() - progress.step.seconds
        if self.progress is not None:
            self.progress(progress)

    def seconds(self) -> float:
        assert self.started is not None
        return time.monotonic() - self.started
