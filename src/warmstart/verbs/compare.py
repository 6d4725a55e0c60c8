"""Compare: two results on the same rows, and whether their difference is more than chance."""

from __future__ import annotations

from pathlib import Path

from warmstart.errors import UsageError
from warmstart.evaluation import Comparison, Evaluation, compare_evaluations, read_predictions


def compare(a: Evaluation | str | Path, b: Evaluation | str | Path) -> Comparison:
    """How far apart two models are on the same rows, by every metric of their task, and the rows they disagree on.

    Each of `a` and `b` is what `ws.evaluate` returns (or `run.validation`), a run directory (its validation rows), the
    folder of `warmstart evaluate -o`, or a `predictions.parquet`. Nothing is predicted again.

        found = ws.compare("runs/a", "runs/b")
        found.metrics["accuracy"]        # Difference(a, b, difference, lo, hi, p_value, minimum_detectable, test)
        found.disagreements[0].fields["text"]

    Rows are paired by their contents; their order does not matter. Shares (accuracy, exact match) have the exact
    McNemar test and Tango's interval, all else a randomization test and a paired bootstrap; `metrics.paired` names the
    sources.
    Raises UsageError "comparison-tasks", "comparison-labels", "comparison-of", "predictions-missing"; DataError
    "comparison-rows", which names the rows that differ, or "predictions-unreadable".
    """
    sides = [_evaluation(result) for result in (a, b)]
    names = [name if isinstance(result, Evaluation) else str(result) for name, result in (("A", a), ("B", b))]
    return compare_evaluations(sides[0], sides[1], names=(names[0], names[1]))


def _evaluation(result: object) -> Evaluation:
    if isinstance(result, Evaluation):
        return result
    if isinstance(result, str | Path):
        return read_predictions(Path(result))
    raise UsageError(
        "comparison-of",
        f"a {type(result).__name__} holds no stored predictions",
        value=result,
        fix="give what ws.evaluate returns, run.validation, a run directory, or the folder of evaluate -o",
    )
