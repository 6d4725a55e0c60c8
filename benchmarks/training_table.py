"""The table `training.md`, from raw records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.verbs.bench_figures import markdown

Records = Sequence[Mapping[str, Any]]
# part, against, at least so many times faster
PROMISES = {
    ("reviews", "Trainer, dynamic padding"): 2.0,
    ("reviews", "Trainer, grouped by length"): 1.3,
    ("fixed", "Trainer, to 128"): 5.0,
    ("mixed", "Trainer, dynamic padding"): 2.5,
}
MOST_SAVING = 0.03  # of a run's time
LEGEND = (
    "all-MiniLM-L6-v2 with a fresh classifier, one epoch, batches of 32 rows, AdamW at 1e-4 falling to 0, no weight",
    "decay, clipped at 1, float32, all dropout as the checkpoint has it: the same rows and settings on every side.",
    "Each contestant lives in a process of its own and waits while another runs; they alternate in turns of a few",
    "steps. The clock runs from the first batch to the last step: loading, tokenizing, saving the result and judging",
    "are not in it. A ratio is taken for each seed over the whole epoch; the table has the median, the least and the",
    "most of the seeds.",
)


def table(records: Records) -> list[str]:
    """The page as lines; a part that has no records is left out."""
    lines = ["# Training", "", "Written by `make bench-training` from the raw turns in `training.jsonl`.", "", *LEGEND]
    for part in dict.fromkeys(record["part"] for record in records):
        lines += ["", *_part(part, [record for record in records if record["part"] == part])]
    return lines


def _part(part: str, records: Records) -> Iterator[str]:
    [work] = _kind(records, "work")
    if part.partition(",")[0] == "saving":
        yield from _saving(part, work, records)
        return
    results = _kind(records, "result")
    ours, *others = work["names"]
    seeds = list(dict.fromkeys(each["seed"] for each in results))
    seconds = {(each["name"], each["seed"]): each["seconds"] for each in results}
    yield from (f"## {part}: {work['rows']:,} rows", "")
    judged = any(each["accuracy"] is not None for each in results)
    header = ("", "rows/s", f"{ours} is", "promised", "", *([f"test accuracy, seeds {seeds}"] if judged else []))
    lines = []
    for name in work["names"]:
        speed = statistics.median(work["rows"] / seconds[name, seed] for seed in seeds)
        line = [name, f"{speed:.1f}", "", "", ""]
        if name in others:
            ratios = [seconds[name, seed] / seconds[ours, seed] for seed in seeds]
            middle = statistics.median(ratios)
            line[2] = f"{middle:.2f}x ({min(ratios):.2f} – {max(ratios):.2f})"
            promised = PROMISES.get((part.partition(",")[0], name))
            if promised is not None:
                line[3:5] = f"≥ {promised}x", "kept" if middle >= promised else "**not kept**"
        if judged:
            mine = [each for each in results if each["name"] == name]
            mean = statistics.mean(each["accuracy"] for each in mine)
            line.append(" · ".join(f"{each['accuracy']:.4f}" for each in mine) + f" (mean {mean:.4f})")
        lines.append(line)
    yield from markdown(header, lines)
    if judged:
        yield ""
        yield from (_accuracies(ours, name, results) for name in others)
    yield from ("", _circumstances(records))


def _accuracies(ours: str, theirs: str, results: Records) -> str:
    """Whether our mean accuracy is one that the other could have had by the chance of the test part's rows."""

    def mean(of: str, name: str) -> float:
        return statistics.mean(each[of] for each in results if each["name"] == name)

    lo, hi, mine = mean("lo", theirs), mean("hi", theirs), mean("accuracy", ours)
    found = "inside" if lo <= mine <= hi else "above" if mine > hi else "**below**"
    return (
        f"Mean accuracy of {ours}: {mine:.4f}; 95 % interval of one run of {theirs}, at its mean of "
        f"{mean('accuracy', theirs):.4f}: {lo:.4f} – {hi:.4f} ({found})."
    )


def _saving(part: str, work: Mapping[str, Any], records: Records) -> Iterator[str]:
    """What stands between the steps, with snapshots and without: whole runs differ by more than what is looked for."""
    without, saving = work["names"]
    turns = _kind(records, "turn")
    seeds = list(dict.fromkeys(each["seed"] for each in turns))

    def total(of: str, name: str, seed: int) -> float:
        return float(sum(each[of] for each in turns if (each["name"], each["seed"]) == (name, seed)))

    shares = [
        (total("between", saving, seed) - total("between", without, seed)) / total("seconds", saving, seed)
        for seed in seeds
    ]
    share = statistics.median(shares)
    yield from (
        f"## {part}: {work['rows']:,} rows",
        "",
        f"{saving}: {share:.1%} of the run ({min(shares):.1%} – {max(shares):.1%}, {len(seeds)} runs), counted between "
        f"the steps, beyond what stands there without snapshots (promised: less than {MOST_SAVING:.0%}; "
        f"{'kept' if share < MOST_SAVING else '**not kept**'}).",
        "",
        _circumstances(records),
    )


def _circumstances(records: Records) -> str:
    wall = sum(each["seconds"] for each in _kind(records, "turn"))
    cpu = sum(each["cpu_seconds"] for each in _kind(records, "turn"))
    [about] = _kind(records, "machine")
    packages = {
        name: found for name, found in about["packages"].items() if name in ("torch", "transformers", "warmstart")
    }
    versions = ", ".join(f"{name} {found}" for name, found in packages.items())
    return (
        f"{about['date']}, {about['seconds'] / 60:.1f} minutes; {about['cpu']['model']}, {about['threads']} of "
        f"{about['cpu']['cores']} cores, which they had for {100 * min(1, cpu / wall / about['threads']):.1f} % of the "
        f"measured time; Python {about['python']}, {versions}."
    )


def _kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]
