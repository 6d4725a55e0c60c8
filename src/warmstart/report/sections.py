"""The parts of the page, each from the records of a run: HTML text, empty where there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.provenance import redact
from warmstart.report.charts import Line, Point, interval_bar, line_chart, scatter, smooth
from warmstart.report.markup import esc, fixed, number, plural, section, table
from warmstart.report.predictions import HardRow, Judged
from warmstart.report.records import Records, finite

NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "mcc": "MCC",
    "auroc": "AUROC",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "mae": "mean absolute error",
    "loss": "loss",
}
_HEADLINES = ("accuracy", "pearson", "spearman", "macro_f1")
_PRIMARY = ("accuracy", "pearson")  # what the tasks rank evaluations by
_ERRORS = ("mae", "loss")  # smaller is better, and no natural upper end

Triple = tuple[float, float, float]  # value, lo, hi


def name_of(metric: str) -> str:
    """A metric's name for people."""
    return NAMES.get(metric, metric.replace("_", " "))


def metrics_at(evaluation: Mapping[str, Any]) -> dict[str, Triple]:
    """The metrics of one evaluation line that have a value and an interval."""
    found: dict[str, Triple] = {}
    for name, value in evaluation["validation"].items():
        if isinstance(value, dict):
            value, lo, hi = (finite(value.get(key)) for key in ("value", "lo", "hi"))
            if value is not None and lo is not None and hi is not None:
                found[str(name)] = (value, lo, hi)
    return found


def best_evaluation(records: Records) -> Mapping[str, Any] | None:
    """The evaluation whose weights a run keeps, ranked as training does: by the task's own metric where it has one, of
    equal ones by the smaller loss, of these the first."""

    def rank(line: Mapping[str, Any]) -> tuple[float, float]:
        found, loss = metrics_at(line), finite(line["validation"].get("loss"))
        primary = next((found[name][0] for name in _PRIMARY if name in found), -math.inf)
        return primary, -math.inf if loss is None else -loss

    return max(records.evaluations, key=rank, default=None)


def headline(records: Records, judged: Judged | None) -> str:
    """The one number people look for, its interval in words, and what guessing would give."""
    best = best_evaluation(records)
    metrics = metrics_at(best) if best is not None else {}
    if not metrics:
        return '<p class="lead">No evaluation has been recorded yet.</p>'
    name = next((name for name in _HEADLINES if name in metrics), next(iter(metrics)))
    value, lo, hi = metrics[name]
    tiles = [_tile(name_of(name), fixed(value), f"95 % interval {fixed(lo)} – {fixed(hi)}", "big")]
    if judged is not None and name == "accuracy" and judged.pairs:
        share, label = _most_common(judged)
        tiles.append(_tile("always the commonest label", fixed(share), esc(label, 40)))
    if judged is not None:
        tiles.append(_tile("validation rows", f"{judged.rows:,}", "with a prediction"))
    if records.steps:
        tiles.append(_tile("trained", plural(len(records.steps), "step"), _speed(records.steps)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def metrics_table(records: Records) -> str:
    """Every metric of the best evaluation, its interval as a bar."""
    best = best_evaluation(records)
    if best is None:
        return ""
    rows = []
    found = metrics_at(best)
    shared = _shared_scale(found)
    for name, (value, lo, hi) in found.items():
        bar = interval_bar(value, lo, hi, *shared) if _bounded(name) else ""
        rows.append([esc(name_of(name)), f"<b>{fixed(value)}</b>", f"{fixed(lo)} – {fixed(hi)}", bar])
    loss = finite(best["validation"].get("loss"))
    if loss is not None:
        rows.append(["loss", f"<b>{number(loss)}</b>", "", ""])
    lead = f"The evaluation after step {esc(best.get('step', '?'), 20)}: the best one, whose weights are kept."
    ends = f"bar from {number(shared[0])} to {number(shared[1])}" if any(map(_bounded, found)) else ""
    return section("Metrics", table(["metric", "#value", "#95 % interval", ends], rows) if rows else "", lead)


def curves(records: Records) -> str:
    """Loss, validation metrics, learning rate and gradient norm over the steps."""
    loss = _points(records.steps, "loss")
    smoothed = smooth(loss)
    validation = [
        (x, y)
        for line in records.evaluations
        if (x := finite(line.get("step"))) is not None and (y := finite(line["validation"].get("loss"))) is not None
    ]
    lines = [Line("each step", loss, "raw" if smoothed else "main"), Line("smoothed", smoothed)]
    figures = [line_chart("Loss", [*lines, Line("validation", validation, "second", dots=True)])]
    figures += [_metric_chart(name, records.evaluations) for name in _charted(records)]
    figures.append(
        line_chart("Learning rate", [Line("learning rate", _points(records.steps, "learning_rate"))], zero=True)
    )
    norm = _points(records.steps, "grad_norm")
    lines = [Line("each step", norm, "raw" if smooth(norm) else "main"), Line("smoothed", smooth(norm))]
    figures.append(line_chart("Gradient norm", lines, zero=True))
    drawn = "".join(figures)
    return section("Training", f'<div class="grid2">{drawn}</div>' if drawn else "")


def numbers_plot(judged: Judged) -> str:
    """Regression: predicted over true."""
    chart = scatter("Predicted over true", judged.numbers, x_name="true", y_name="predicted")
    return section("Predictions", f'<div class="grid2">{chart}</div>' if chart else "", "On the line, both are equal.")


def hardest_rows(judged: Judged) -> str:
    """The rows with the largest loss: often wrong labels, else what the model cannot do yet."""
    items = "".join(_hard_row(hard) for hard in judged.hardest)
    lead = (
        "By loss, largest first. A confident mistake is either a wrong label or something the model has yet to learn."
    )
    return section("Hardest rows", f'<ol class="rows">{items}</ol>' if items else "", lead)


def _hard_row(hard: HardRow) -> str:
    fields = "".join(
        f'<p dir="auto">{"" if len(hard.fields) == 1 else f"<small>{esc(name)}</small> "}{esc(text, 400)}</p>'
        for name, text in hard.fields.items()
    )
    score = "" if hard.score is None else f" {fixed(hard.score)}"
    return (
        f"<li>{fields}<div><span>true <b>{esc(hard.true or 'none', 80)}</b></span>"
        f"<span>predicted <b>{esc(hard.predicted or 'none', 80)}</b>{score}</span>"
        f"<span>loss {fixed(hard.loss)}</span><span>row {hard.row}</span></div></li>"
    )


def settings(title: str, values: Mapping[str, Any]) -> str:
    """Nested settings as one table of dotted names, folded away; the values of secret names are hidden."""
    rows = []
    for name, value in _flat(values):
        shown = redact(f"{name}={value}")[len(name) + 1 :]
        rows.append([f"<code>{esc(name, 100)}</code>", f"<code>{esc(shown, 300)}</code>"])
    if not rows:
        return ""
    return f"<details><summary>{esc(title)}</summary>{table(['name', 'value'], rows)}</details>"


def _tile(name: str, value: str, below: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><span>{esc(name)}</span><b>{value}</b><small>{below}</small></div>'


def _most_common(judged: Judged) -> tuple[float, str]:
    counts: dict[str, int] = {}
    for (true, _), count in judged.pairs.items():
        counts[true] = counts.get(true, 0) + count
    label = max(counts, key=lambda name: counts[name])
    return counts[label] / sum(counts.values()), label


def _speed(steps: Sequence[Mapping[str, Any]]) -> str:
    seconds = sum(finite(step.get("seconds")) or 0.0 for step in steps)
    tokens = sum(finite(step.get("tokens")) or 0.0 for step in steps)
    if seconds <= 0:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    took = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    return f"{took}, {tokens / seconds:,.0f} tokens/s" if tokens else took


def _bounded(name: str) -> bool:
    """Whether 1 is the best there can be, so that a common scale makes sense."""
    return name not in _ERRORS


def _shared_scale(metrics: Mapping[str, Triple]) -> tuple[float, float]:
    """From the tenth below the lowest interval to 1: wide enough to hold all, narrow enough to see the widths."""
    ends = [lo for name, (_, lo, _) in metrics.items() if _bounded(name)]
    return (math.floor(min(ends, default=0.0) * 10 - 0.5) / 10, 1.0)


def _charted(records: Records) -> list[str]:
    """The metrics that get a chart: the headline first, four at most."""
    names = list(dict.fromkeys(name for line in records.evaluations for name in metrics_at(line)))
    first = [name for name in _HEADLINES if name in names][:1]
    return (first + [name for name in names if name not in first])[:4]


def _metric_chart(name: str, evaluations: Sequence[Mapping[str, Any]]) -> str:
    triples = [
        (step, *metrics_at(line)[name])
        for line in evaluations
        if name in metrics_at(line) and (step := finite(line.get("step"))) is not None
    ]
    points = [(step, value) for step, value, _, _ in triples]
    band = [(step, lo, hi) for step, _, lo, hi in triples]
    return line_chart(f"Validation {name_of(name)}", [Line(name_of(name), points, "second", dots=True, band=band)])


def _points(steps: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    pairs = ((finite(step.get("step")), finite(step.get(name))) for step in steps)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, " ".join(map(str, value))
        else:
            yield name, "–" if value is None else str(value)
