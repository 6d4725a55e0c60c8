"""Make `starter`, the default sentiment classifier: `make starter`. Trains on the training part only.

All of starter-encoder is fine-tuned on movie reviews; the change is then cut to low rank and stored as the small delta
that the package carries. What ships is judged, not what was trained: the report beside the delta has the accuracy of
the classifier put together again from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from pathlib import Path

import warmstart as ws
from warmstart.checkpoints import find
from warmstart.checkpoints.starter import DELTA, make_delta, materialise
from warmstart.cli.train import progress_line
from warmstart.verbs.demo import movie_reviews

RANK = 16
CONFIG = ws.TrainConfig(epochs=2, seed=0)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DELTA)
    output: Path = parser.parse_args().output
    base = find("starter-encoder").folder
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = ws.train(
            "starter-encoder",
            movie_reviews("train"),
            output=work / "run",
            validation=movie_reviews("validation"),
            config=CONFIG,
            progress=progress_line(),
        )
        lost = make_delta(base, run.model, work / "delta", RANK)
        whole = ws.evaluate(run.pipeline, movie_reviews("test"))
        shipped = ws.evaluate(ws.load(materialise(base, work / "delta", work / "starter")), movie_reviews("test"))
        report = {
            "trained_on": "movie-review snippets of vaderSentiment 3.3.2, training part (buckets 0 to 7)",
            "config": CONFIG.model_dump(),
            "best_step": run.best_step,
            "rank": RANK,
            "largest_share_lost": max(lost.values()),
            "test": {"before_compression": whole.as_dict(), "shipped": shipped.as_dict()},
        }
        (work / "delta" / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        shutil.copytree(work / "delta", output)
    print(json.dumps(report["test"], indent=1))
    print({path.name: path.stat().st_size for path in sorted(output.iterdir())})


if __name__ == "__main__":
    main()
