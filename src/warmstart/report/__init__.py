"""One self-contained HTML page from a run directory: curves, metrics with intervals, mistakes, settings, provenance."""

from __future__ import annotations

from pathlib import Path

from warmstart.durable import write_file
from warmstart.errors import WarmstartError
from warmstart.report.confusion import confusion_part
from warmstart.report.markup import esc, section
from warmstart.report.page import page
from warmstart.report.predictions import judge
from warmstart.report.records import Records, read_records
from warmstart.report.sections import curves, hardest_rows, headline, metrics_table, numbers_plot, settings

__all__ = ["render_run", "write_report"]


def render_run(run: str | Path) -> str:
    """The report of a run directory as HTML text.

    It reads `config.toml`, `provenance.json`, `metrics.jsonl` and `predictions.parquet`. What is missing or damaged is
    said in a sentence. Labels, texts and settings are shown as inert text and secrets hidden; the page runs no script
    and may fetch nothing. The same records give the same bytes.

    Raises UsageError `run-not-found` or `run-empty`.

        html = render_run("runs/a")
    """
    run = Path(run)
    records = read_records(run)
    judged = judge(run / "predictions.parquet")
    notes = list(records.notes)
    parts = [headline(records, judged), metrics_table(records), curves(records)]
    if judged is None:
        notes.append("predictions.parquet is not there (yet), so no mistakes can be shown.")
    else:
        notes += [judged.note] if judged.note else []
        parts += [confusion_part(judged), numbers_plot(judged), hardest_rows(judged)]
    parts.append(
        section("Settings", settings("Configuration", records.config) + settings("Provenance", records.provenance))
    )
    if notes:
        parts.append('<section class="notes"><h2>Left out</h2>' + "".join(f"<p>{esc(note)}</p>" for note in notes))
        parts.append("</section>")
    return page(f"Run {records.name}", _subtitle(records), "\n".join(part for part in parts if part))


def write_report(run: str | Path) -> Path:
    """Write `report.html` into the run directory and return its path: the old page or the new one stands there, whole.

    Raises as `render_run` does, and WarmstartError `run-unwritable`.

        write_report("runs/a")    # runs/a/report.html
    """
    target = Path(run) / "report.html"
    text = render_run(run)
    try:
        write_file(target, text.encode())
    except OSError as error:
        raise WarmstartError(
            "run-unwritable",
            f"the report cannot be written: {error.strerror or error}",
            where=str(target),
            fix="check free space and permissions; the report before it is still there",
        ) from error
    return target


def _subtitle(records: Records) -> str:
    known = {**records.provenance, **records.config}
    said = [str(known[key]) for key in ("task", "model", "checkpoint") if isinstance(known.get(key), str)]
    if records.steps and isinstance(epoch := records.steps[-1].get("epoch"), int | float):
        said.append(f"epoch {epoch:.3g}")
    return " · ".join(dict.fromkeys(said)) or "A training run."
