"""Part `speed`: from texts to labels. Every contestant lives in a process of its own, with one thread, on one core."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference_prepare import MODEL, prepare
from inference_table import AT_32
from inference_workloads import Workload, gigaflops, workloads
from tokenizers import Tokenizer

from warmstart.errors import WarmstartError
from warmstart.verbs.bench_figures import agreement, disagreements
from warmstart.verbs.bench_process import Contestant, Place, spare_cores, working
from warmstart.verbs.bench_race import Entry, Found, Survey, find_setting, race, runner_up

HERE = str(Path(__file__).parent)
LIMIT, LABELS = 512, ("NEGATIVE", "POSITIVE")
BATCH_SIZES, TOKEN_BUDGETS = (1, 4, 8, 16, 32, 64), (256, 512, 1024, 2048, 4096)
SEARCH_ROWS = 128  # texts on which the best batch size is looked for
REFERENCE = "pipeline"  # the torch model in float32, run by transformers alone: whose labels are compared with

OWN, PEERS, OTHERS = "warmstart.verbs.bench_own", "warmstart.checkpoints.peer_transformers", "inference_peers"


@dataclass(frozen=True)
class Entrant:
    """A contestant, and how often it runs on each workload: 0 is not at all, None as often as was asked for."""

    contestant: Contestant
    repeats: Mapping[str, int | None] = field(default_factory=lambda: {"reviews": 2, "mixed": 0})


ALWAYS = {"reviews": None, "mixed": None}


def entrants(common: Mapping[str, Any]) -> list[Entrant]:
    """Who runs. Those that a promise is about run in every repeat, the others often enough to be placed."""

    def own(name: str, settings: Mapping[str, Any]) -> Contestant:
        return Contestant(name, OWN, {"task": None, "device": "cpu", **settings})

    def other(name: str, peer: str, precision: str, choices: tuple[int, ...]) -> Contestant:
        return Contestant(name, OTHERS, {**common, "peer": peer, "precision": precision}, choices, HERE)

    pipeline = {**common, "peer": "pipeline"}
    exported = str(Path(common["forms"]) / "openvino-int8")
    return [
        Entrant(own("warmstart fp32", {"model": MODEL}), ALWAYS),
        Entrant(own("warmstart int8", {"model": exported, "exported": True}), {"reviews": None, "mixed": 2}),
        Entrant(own("warmstart bf16", {"model": MODEL, "dtype": "bfloat16"})),
        Entrant(Contestant(REFERENCE, PEERS, pipeline, BATCH_SIZES), ALWAYS),
        Entrant(Contestant(AT_32, PEERS, pipeline, (32,)), {"reviews": 1, "mixed": None}),
        Entrant(other("sentence-transformers", "encode", "fp32", BATCH_SIZES), ALWAYS),
        Entrant(Contestant("textbook loop", PEERS, {**common, "peer": "textbook"}, (32,)), {"reviews": 1, "mixed": 0}),
        Entrant(other("openvino fp32", "openvino", "fp32", BATCH_SIZES)),
        Entrant(other("openvino int8", "openvino", "int8", BATCH_SIZES), {"reviews": None, "mixed": 0}),
        Entrant(other("onnxruntime fp32", "onnxruntime", "fp32", BATCH_SIZES)),
        Entrant(other("onnxruntime int8", "onnxruntime", "int8", BATCH_SIZES)),
        Entrant(other("ctranslate2 fp32", "ctranslate2", "fp32", TOKEN_BUDGETS)),
        Entrant(other("ctranslate2 int8", "ctranslate2", "int8", TOKEN_BUDGETS), {"reviews": None, "mixed": 0}),
    ]


def run_speed(forms: Path, rows: int | None, repeats: int) -> Iterator[dict[str, Any]]:
    """The records of the part. `rows`: only so many texts a workload."""
    _say("preparing the peers' models")
    source, failed = prepare(forms)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    common = {
        "folder": str(source), "forms": str(forms), "limit": LIMIT, "labels": LABELS, "device": "cpu",
        "largest": (config["hidden_size"], config["intermediate_size"]), "task": "text-classification",
        "problem": "single", "threshold": 0.5,
    }  # fmt: skip
    works = {name: work.first(rows) for name, work in workloads().items()}
    yield from (_described(work, source, config) for work in works.values())
    place = Place(1, spare_cores(1))
    found: dict[str, dict[str, Found]] = {}
    running: list[Entrant] = []
    for entrant in entrants(common):
        name = entrant.contestant.name
        if reason := failed.get(_form(name)):
            _say(f"{name} is left out: {reason}")
            yield {"kind": "failed", "name": name, "reason": reason}
            continue
        subset = {key: work.rows[:SEARCH_ROWS] for key, work in works.items() if entrant.repeats[key] != 0}
        _say(f"{name}: its best setting")
        try:
            found[name] = find_setting(entrant.contestant, place, subset)
        except WarmstartError as error:
            _say(f"{name} is left out: {error.what}")
            yield {"kind": "failed", "name": name, "reason": error.what}
            continue
        running.append(entrant)
        for key, (_, times) in found[name].items():
            if times:
                yield {"kind": "search", "workload": key, "name": name, "times": {str(k): v for k, v in times.items()}}
    yield from _raced(running, found, works, place, repeats)


def _raced(
    running: Sequence[Entrant],
    found: Mapping[str, Mapping[str, Found]],
    works: Mapping[str, Workload],
    place: Place,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    _say("loading everybody")
    with working([entrant.contestant for entrant in running], place) as workers:
        entries = []
        for key, work in works.items():
            for entrant in running:
                wanted = entrant.repeats[key]
                count = repeats if wanted is None else min(wanted, repeats)
                if count:
                    name = entrant.contestant.name
                    workers[name].load(key, work.rows)
                    best, times = found[name][key]
                    entries.append(Entry(entrant.contestant, key, best, count, runner_up(times)))
        trials, surveys = race(entries, workers, {key: len(work.texts) for key, work in works.items()}, progress=_say)
        yield from ({"kind": "trial", **trial.as_dict()} for trial in trials)
        for (key, name), survey in surveys.items():
            yield _surveyed(works[key], name, survey, surveys.get((key, REFERENCE)))
        _say("matrix products")
        yield from ({"kind": "peak", "name": name, "gflops": worker.gemm_peak()} for name, worker in workers.items())


def _surveyed(work: Workload, name: str, survey: Survey, reference: Survey | None) -> dict[str, Any]:
    """Labels are kept as what they say about the contestant: where they differ, and how many are right."""
    judged = [(answer, label) for answer, label in zip(survey.answers, work.labels, strict=True) if label is not None]
    return {
        "kind": "survey",
        "workload": work.name,
        "name": name,
        "tokens": survey.tokens,
        "positions": survey.positions,
        "agreement": None if reference is None else agreement(survey.answers, reference.answers),
        "differs": [] if reference is None else disagreements(survey.answers, reference.answers),
        "right": sum(answer == label for answer, label in judged),
        "labelled": len(judged),
    }


def _described(work: Workload, source: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(LIMIT)
    tokenizer.no_padding()
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(list(work.texts))]
    return {
        "kind": "workload", "name": work.name, "texts": len(lengths), "tokens": sum(lengths),
        "longest": max(lengths), "warm_up_texts": len(lengths), "gigaflops": gigaflops(lengths, config),
        "gigaflops_of_first_tokens": gigaflops(lengths, config, first_tokens=True),
    }  # fmt: skip


def _form(name: str) -> str:
    """The converted model that a contestant needs."""
    return {
        "warmstart int8": "openvino-int8",
        "openvino int8": "openvino-padded-int8", "openvino fp32": "openvino-padded-fp32",
        "onnxruntime fp32": "onnx", "onnxruntime int8": "onnx", "ctranslate2 fp32": "ctranslate2",
        "ctranslate2 int8": "ctranslate2", "sentence-transformers": "head",
    }.get(name, "")  # fmt: skip


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
