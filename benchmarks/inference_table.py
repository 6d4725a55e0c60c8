"""The table `inference.md`, from raw records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warmstart.metrics import Metric, wilson
from warmstart.verbs.bench_figures import Ratio, markdown, of, padding, ratio, removed, rows_per_second, undisturbed
from warmstart.verbs.bench_race import Trial

Records = Sequence[Mapping[str, Any]]
FP32, INT8 = "warmstart fp32", "warmstart int8"
AT_32 = "pipeline, batch 32"  # in the order in which texts come, as most people run it
# ours, theirs, workload, at least so many times faster
PROMISES = (
    (FP32, "pipeline", "reviews", 1.65),
    (FP32, "sentence-transformers", "reviews", 1.15),
    (FP32, "pipeline", "mixed", 1.75),
    (FP32, AT_32, "mixed", 4.0),
    (FP32, "sentence-transformers", "mixed", 1.15),
    (INT8, "pipeline", "reviews", 4.2),
    (INT8, "openvino int8", "reviews", 1.5),
    (INT8, "ctranslate2 int8", "reviews", 1.15),
)
BATCHES_PROMISED, MEMORY_PROMISED_MB, SCALE_PROMISED, COLD_PROMISED = 1.45, 100, 0.10, 1.2
LEGEND = (
    "Same texts, same checkpoint, one thread a process, all on one core, from text to label (tokenization included),",
    "in inference mode, warm. Contestants alternate inside each repeat, another one first each time; texts/s is the",
    "median over repeats, a ratio the median of the ratios inside each repeat, with the least and the most. `setting`:",
    "the batch size (CTranslate2: tokens a batch) that was best for that contestant in the same run (of two close ones",
    "the quicker one on all texts). `padding`: share of the computed token positions that held no token; `removed`:",
    "share of the positions of batches of 32 in arrival order that were not computed. `GEMM`: what the real tokens",
    "need in matrix products a second, as a share of the best product of the model's largest layer in the same type by",
    "whichever contestant's library was quickest; ours need less of the last layer, whose other tokens the head does",
    "not read, and are counted so. `labels`: share equal to those of `pipeline`, which is torch in fp32. `peak MB`:",
    "the most memory held while running. Accuracy is on the",
    "labelled texts, with Wilson's 95 % interval.",
)


def table(records: Records) -> list[str]:
    """The page as lines; a part that has no records is left out."""
    lines = ["# Inference", "", "Written by `make bench` from the raw repeats in `inference.jsonl`."]
    parts = (("speed", _speed), ("batches", _batches), ("memory", _memory), ("scale", _scale), ("cold", _cold))
    for part, write in parts:
        mine = [record for record in records if record["part"] == part]
        if mine:
            lines += ["", *write(mine), "", *_foot(mine)]
    return lines


def trials_of(records: Records) -> list[Trial]:
    names = Trial.__dataclass_fields__
    return [Trial(**{name: each[name] for name in names}) for each in records if each["kind"] == "trial"]


def _speed(records: Records) -> Iterator[str]:
    trials = trials_of(records)
    yield from ("## Speed", "", *LEGEND)
    for work in _kind(records, "workload"):
        share = f"{work['texts']:,} texts, {work['tokens']:,} tokens, the longest {work['longest']}"
        warm = "all of them" if work["warm_up_texts"] == work["texts"] else f"{work['warm_up_texts']:,} of them"
        share += f"; each contestant had read {warm} before"
        yield from ("", f"### {work['name']}: {share}", "", *_standings(records, trials, work))
    yield from ("", "### Promised", "")
    yield from markdown(("what", "promised", "measured", ""), [*_ratios(trials), *_labels(records)])
    if failed := _kind(records, "failed"):
        yield from ("", *(f"Left out: {each['name']}: {each['reason']}." for each in failed))
    yield from ("", f"The contestants had their core for {100 * undisturbed(trials):.1f} % of the measured time.")


def _standings(records: Records, trials: Sequence[Trial], work: Mapping[str, Any]) -> list[str]:
    header = (
        "", "setting", "texts/s", f"{FP32} is", f"{INT8} is", "padding", "removed", "GEMM", "labels", "accuracy",
        "peak MB", "repeats",
    )  # fmt: skip
    peaks: dict[str, float] = {}  # by type, whoever reached it
    for each in _kind(records, "peak"):
        kind = _type(each["name"])
        peaks[kind] = max(peaks.get(kind, 0.0), each["gflops"] or 0.0)
    surveys = [each for each in _kind(records, "survey") if each["workload"] == work["name"]]
    arrival = next((each["positions"] for each in surveys if each["name"] == AT_32), None)
    lines = []
    for survey in surveys:
        name = survey["name"]
        mine = of(trials, work["name"], name)
        speed = rows_per_second(mine)
        ours = [ratio(of(trials, work["name"], own), mine) if own != name else None for own in (FP32, INT8)]
        computed = work["gigaflops_of_first_tokens" if name.startswith("warmstart") else "gigaflops"]
        peak = peaks.get(_type(name))
        lines.append([
            name, "" if mine[0].setting is None else str(mine[0].setting), f"{speed:.1f}", *map(_times, ours),
            _percent(padding(survey["positions"], work["tokens"])),
            _percent(removed(survey["positions"], arrival)),
            _percent(speed * computed / work["texts"] / peak if peak else None),
            _percent(survey["agreement"]), _interval(_accuracy(survey)),
            "" if mine[0].peak_mb is None else f"{max(trial.peak_mb or 0 for trial in mine):.0f}", str(len(mine)),
        ])  # fmt: skip
    return markdown(header, lines)


def _type(name: str) -> str:
    return name.rpartition(" ")[2] if name.endswith((" int8", " bf16")) else "fp32"


def _ratios(trials: Sequence[Trial]) -> Iterator[list[str]]:
    for ours, theirs, workload, least in PROMISES:
        found = ratio(of(trials, workload, ours), of(trials, workload, theirs))
        kept = "not measured" if found is None else _kept(found.value >= least)
        yield [f"{workload}: {ours} against {theirs}", f"≥ {least}x", _times(found), kept]


def _labels(records: Records) -> Iterator[list[str]]:
    surveys = {(each["workload"], each["name"]): each for each in _kind(records, "survey")}
    for (workload, name), survey in surveys.items():
        if name in (FP32, INT8) and survey["agreement"] is not None:
            least = 1.0 if name == FP32 else 0.99
            kept = _kept(survey["agreement"] >= least)
            yield [f"{workload}: labels of {name}", f"≥ {100 * least:.0f} %", _percent(survey["agreement"]), kept]
    one, other = surveys.get(("reviews", FP32)), surveys.get(("reviews", INT8))
    if one is not None and other is not None:
        wide, narrow = _accuracy(one), _accuracy(other)
        inside = wide is not None and narrow is not None and wide.lo <= narrow.value <= wide.hi
        yield [f"reviews: accuracy of {INT8}", f"in {_interval(wide)}", _interval(narrow), _kept(inside)]


def _batches(records: Records) -> Iterator[str]:
    yield from ("## Random batches of 32 reviews, unpadded and padded, in one process", "")
    lines = []
    passes = _kind(records, "pass")
    for what in dict.fromkeys(each["what"] for each in passes):
        mine = [each for each in passes if each["what"] == what]
        found = [each["padded"] / each["unpadded"] for each in mine]
        times = Ratio(statistics.median(found), min(found), max(found), len(found))
        cost = [
            statistics.median(1e3 * each[name] / each["batches"] for each in mine) for name in ("unpadded", "padded")
        ]
        tokens, positions = sum(one["tokens"] for one in mine), sum(one["positions"] for one in mine)
        lines.append([
            what, f"≥ {BATCHES_PROMISED}x", _times(times), _kept(times.value >= BATCHES_PROMISED), str(len(mine)),
            *(f"{milliseconds:.0f}" for milliseconds in cost), _percent(1 - tokens / positions),
        ])  # fmt: skip
    header = ("", "promised", "unpadded is", "", "repeats", "ms a batch, unpadded", "padded", "padding removed")
    yield from markdown(header, lines)
    for each in _kind(records, "difference"):
        yield from ("", f"Largest difference of a logit, unpadded against padded: {each['logits']:.2g}.")


def _memory(records: Records) -> Iterator[str]:
    found = _kind(records, "memory")
    warm = [each for each in found if each["warm"]]
    growth, last = max(each["mb"] for each in warm) - warm[0]["mb"], found[-1]
    yield from ("## Memory", "")
    yield (
        f"{last['rows']:,} rows through two layers of width 64, {last['rows'] / last['seconds']:,.0f} rows/s. After "
        f"{warm[0]['rows']:,} rows the process held {warm[0]['mb']:.0f} MB, and from there at most {growth:.0f} MB "
        f"more (promised: less than {MEMORY_PROMISED_MB}; {_kept(growth < MEMORY_PROMISED_MB)})."
    )


def _scale(records: Records) -> Iterator[str]:
    yield from ("## Scale", "")
    if failed := _kind(records, "failed"):
        yield from (f"Left out: {each['name']}: {each['reason']}." for each in failed)
        return
    runs = _kind(records, "scale")
    short, long = sorted({each["rows"] for each in runs})
    cost = {count: [e["seconds"] / count for e in runs if e["rows"] == count] for count in (short, long)}
    change = statistics.median(b / a for a, b in zip(cost[short], cost[long], strict=True)) - 1
    yield (
        f"MiniLM in int8: {1e3 * statistics.median(cost[short]):.3f} ms a row over {short:,} rows, "
        f"{1e3 * statistics.median(cost[long]):.3f} over {long:,}: {100 * change:+.1f} % (promised: within "
        f"{100 * SCALE_PROMISED:.0f} %; {_kept(abs(change) <= SCALE_PROMISED)})."
    )


def _cold(records: Records) -> Iterator[str]:
    yield from ("## Cold start", "")
    yield "`warmstart predict -m EXPORTED TEXT`, from the command to its last line, a new process each time; median,"
    yield "least and most. The first run of all compiles the graph, the others read what it kept."
    runs, lines = _kind(records, "cold"), []
    for name in dict.fromkeys(each["name"] for each in runs):
        mine = [each["seconds"] for each in runs if each["name"] == name and each["compiled"]]
        [first] = [each["seconds"] for each in runs if each["name"] == name and not each["compiled"]]
        middle = statistics.median(mine)
        spread = f"{middle:.2f} s ({min(mine):.2f} – {max(mine):.2f})"
        kept = _kept(middle <= COLD_PROMISED)
        lines.append([name, f"≤ {COLD_PROMISED} s", spread, kept, str(len(mine)), f"{first:.2f} s"])
    yield ""
    yield from markdown(("", "promised", "compiled before", "", "processes", "first of all"), lines)
    if failed := _kind(records, "failed"):
        yield from ("", *(f"Left out: {each['name']}: {each['reason']}." for each in failed))


def _foot(records: Records) -> Iterator[str]:
    """What the figures belong to."""
    machine, took = _kind(records, "machine")[0], _kind(records, "took")
    cpu = machine["cpu"]
    versions = ", ".join(f"{name} {found}" for name, found in machine["packages"].items() if found)
    seconds = f", {took[0]['seconds'] / 60:.1f} minutes" if took else ""
    yield f"{machine['date']}{seconds}; {cpu['model']}, {cpu['cores']} cores, one used ({', '.join(cpu['flags'])}); "
    yield f"Python {machine['python']}, {versions}."


def _kind(records: Records, kind: str) -> list[Mapping[str, Any]]:
    return [record for record in records if record["kind"] == kind]


def _accuracy(survey: Mapping[str, Any]) -> Metric | None:
    return wilson(survey["right"], survey["labelled"]) if survey["labelled"] else None


def _interval(metric: Metric | None) -> str:
    return "" if metric is None else f"{metric.value:.4f} ({metric.lo:.4f} – {metric.hi:.4f})"


def _times(found: Ratio | None) -> str:
    return "" if found is None else f"{found.value:.2f}x ({found.least:.2f} – {found.most:.2f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _kept(yes: bool) -> str:
    return "kept" if yes else "**not kept**"
