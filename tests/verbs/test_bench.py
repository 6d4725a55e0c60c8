"""`bench`: what it takes, what it refuses before anything starts, and a run with a peer that fails."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from support.runs import reviews
from warmstart.errors import WarmstartError
from warmstart.rows import Row
from warmstart.tasks import find_task
from warmstart.verbs import bench as verb
from warmstart.verbs.bench import bench, default_threads
from warmstart.verbs.bench_process import Contestant, usable_cores


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("bench-count", {"rows": 0}),
        ("bench-count", {"repeats": 0}),
        ("bench-count", {"threads": -1}),
        ("device-unknown", {"device": "toaster"}),
        ("task-unknown", {"task": "no-such-task"}),
        ("no-rows", {"data": []}),
        ("file-missing", {"data": "no-such.jsonl"}),
        ("field-not-text", {"data": [{"text": 7}]}),
        ("checkpoint-not-found", {"model": "./nowhere"}),
    ],
)
def test_a_mistake_is_told_before_any_process_starts(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, code: str, arguments: dict[str, Any]
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *command, **options: pytest.fail("a process was started"))
    call = {"model": tiny("bert"), "data": reviews(4), **arguments}
    with pytest.raises(WarmstartError) as caught:
        bench(call.pop("model"), call.pop("data"), **call)
    assert caught.value.code == code


def test_threads_are_those_that_torch_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, threads in (("3", 3), ("0", usable_cores()), ("many", usable_cores()), ("", usable_cores())):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert default_threads() == threads


STUB = """
class Stub:
    model = None
    facts = {"task": "text-classification", "problem": "single"}

    def answers(self, rows, setting):
        if setting == 13:
            raise RuntimeError("out of luck")
        return ["good" if "good" in row["text"] else "bad" for row in rows]

    def positions(self, rows, setting):
        longest = max(map(self.length, rows))
        return len(rows) * longest if setting else self.tokens(rows)

    def gemm_peak(self):
        return None

    def tokens(self, rows):
        return sum(map(self.length, rows))

    def length(self, row):
        return len(row["text"].split())

def start(settings):
    return Stub()
"""


def test_standings_of_ours_and_a_peer_while_others_fail(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stub_contestant.py").write_text(STUB, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def peers(facts: Any, folder: str) -> Iterator[Contestant]:
        assert facts["problem"] == "single" and Path(folder) == tiny("bert")
        yield Contestant("broken peer", "no_such_module", {}, (1, 2))
        yield Contestant("unlucky peer", "stub_contestant", {}, (13, 14))
        yield Contestant(verb.TEXTBOOK, "stub_contestant", {}, (32,))

    monkeypatch.setattr(verb, "_peers", peers)
    monkeypatch.setattr(verb, "OWN", "stub_contestant")
    lines: list[str] = []
    rows = reviews(40)
    with caplog.at_level(logging.WARNING, "warmstart"):
        found = bench(tiny("bert"), rows, rows=20, repeats=2, threads=1, progress=lines.append)
    assert list(found.failed) == ["broken peer", "unlucky peer"]
    assert "ModuleNotFoundError" in found.failed["broken peer"] and "out of luck" in found.failed["unlucky peer"]
    assert "broken peer is left out" in caplog.text and "unlucky peer is left out" in caplog.text
    ours, textbook = found.standings
    assert (ours.name, textbook.name, found.rows, found.threads) == ("warmstart", "textbook loop", 20, 1)
    assert ours.ratio is None and ours.agreement is None and textbook.ratio is not None
    assert textbook.ratio.repeats == 2 and textbook.agreement == 1 and textbook.batch_size == 32
    lengths = [len(row["text"].split()) for row in rows[:20]]
    padded = 1 - sum(lengths) / (20 * max(lengths))
    assert found.tokens == sum(lengths) and ours.padding == 0 and textbook.removed == 0
    assert textbook.padding == pytest.approx(padded) and ours.removed == pytest.approx(padded)
    assert [(trial.name, trial.repeat) for trial in found.trials] == [
        ("warmstart", 0), ("textbook loop", 0), ("textbook loop", 1), ("warmstart", 1),
    ]  # fmt: skip
    shape = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert shape["ratios"] == {"textbook loop": textbook.ratio.value} and len(shape["trials"]) == 4
    assert "command" not in shape["environment"] and shape["environment"]["cpu"]["model"]
    table = found.table()
    assert len(table) == 3 and table[0].split()[:2] == ["batch", "rows/s"] and table[2].startswith("textbook loop")
    assert any("repeat 2" in line for line in lines)


def test_a_task_without_peers_is_measured_alone_and_that_is_told(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stub_contestant.py").write_text(STUB.replace("text-classification", "text-to-text"), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(verb, "OWN", "stub_contestant")
    with caplog.at_level(logging.WARNING, "warmstart"):
        found = bench(tiny("bert"), reviews(4), repeats=1, threads=1)
    assert [standing.name for standing in found.standings] == ["warmstart"] and found.as_dict()["ratios"] == {}
    assert "nothing here to compare with" in caplog.text


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        ({"task": "text-classification"}, ["transformers.pipeline", "textbook loop"]),
        ({"task": "sentence-embedding", "pooling": "mean"}, ["sentence-transformers", "textbook loop"]),
        ({"task": "sentence-embedding", "pooling": "last"}, ["sentence-transformers"]),
        ({"task": "token-classification"}, ["transformers.pipeline"]),
        ({"task": "fill-mask"}, ["transformers.pipeline"]),
        ({"task": "zero-shot-classification", "entailment": 0}, ["transformers.pipeline"]),
        ({"task": "zero-shot-classification"}, []),  # by embeddings
        ({"task": "rerank"}, ["CrossEncoder"]),
        ({"task": "question-answering"}, []),
    ],
)
def test_the_peers_of_a_task(facts: dict[str, Any], names: list[str]) -> None:
    assert [peer.name for peer in verb._peers(facts, "folder")] == names


def test_of_an_export_the_peers_run_the_checkpoint_it_was_made_from(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    source = {"name": str(tiny("bert"))}
    record = SimpleNamespace(task="text-classification", source=source, format="onnx", precision="int8")
    monkeypatch.setattr(verb, "is_export", lambda folder: folder == tmp_path)
    monkeypatch.setattr(verb, "verify_export", lambda folder: SimpleNamespace(record=record))
    subject = verb._subject(tmp_path, None, "auto")
    assert (subject.task.name, subject.device, subject.source) == ("text-classification", "cpu", tiny("bert"))
    assert subject.precision == "onnx int8"
    assert subject.own.settings["exported"] is True and subject.own.settings["model"] == str(tmp_path)
    source["name"] = str(tmp_path / "gone")
    with caplog.at_level(logging.WARNING, "warmstart"):
        assert verb._subject(tmp_path, None, "cpu").source is None
    assert "no peer runs" in caplog.text
    assert verb._subject(tiny("bert"), None, "cpu").own.settings["exported"] is False


@pytest.mark.parametrize(
    ("task", "row", "read"),
    [
        ("rerank", {"query": "q", "passages": ["a", "b"], "labels": [0, 1]}, {"query": "q", "passages": ["a", "b"]}),
        ("rerank", {"query": "q", "passages": "a"}, {"query": "q", "passages": "a"}),
        (
            "zero-shot-classification",
            {"text": "t", "labels": ["a", "b"], "label": "a"},
            {"text": "t", "labels": ["a", "b"]},
        ),
        ("token-classification", {"tokens": np.array(["a", "b"]), "tags": [0, 0]}, {"tokens": ["a", "b"]}),
        ("text-to-text", {"source": "s", "target": "t"}, {"source": "s"}),
    ],
)
def test_contestants_get_what_predicting_reads(task: str, row: dict[str, Any], read: dict[str, Any]) -> None:
    assert verb._texts([Row(row)], find_task(task), None) == [read]
