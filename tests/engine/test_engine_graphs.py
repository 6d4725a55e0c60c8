"""Runtimes of exported graphs: names, threads, the cache of compiled graphs, what is not installed, no telemetry."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import warmstart as ws
from support.damage import copy_of
from support.exports import TEXTS, edit_record, rows, tiny_export
from warmstart.batching import Shapes, collate
from warmstart.engine import graph_runtime, graph_writer
from warmstart.engine.graph import Traced, trace, weights_digest
from warmstart.engine.graph_ranges import Ranges
from warmstart.engine.graph_runtime import positions, threads
from warmstart.errors import UsageError
from warmstart.tasks import as_dict


@pytest.fixture(scope="module")
def openvino_folder(tiny_root: Path) -> Path:
    return tiny_export(tiny_root, "openvino")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the package."""
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("4,2", 4), ("", 0), ("many", 0), (None, 0)])
def test_threads_are_what_torch_would_take(monkeypatch: pytest.MonkeyPatch, value: str | None, count: int) -> None:
    if value is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads() == count


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_what_is_not_installed_is_said_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    module = {"openvino": "openvino", "onnx": "onnxruntime"}[format]
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    calls: list[Callable[[], Any]] = [
        lambda: graph_writer(format),
        lambda: graph_runtime(
            format,
            tmp_path,
            precision="fp32",
            inputs=("x",),
            outputs=[("y", (None,))],
            limit=512,
            packed=False,
            digest="",
            cache=None,
        ),
        lambda: ws.export("starter", tmp_path / "out", format=format),
    ]
    for call in calls:
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.code == "extra-missing" and f"warmstart[{format}]" in caught.value.fix


# --- the cache of compiled graphs ---------------------------------------------------------------------------------


def test_a_compiled_graph_is_kept_and_used_again(openvino_folder: Path, cache: Path) -> None:
    first = ws.load(openvino_folder)(list(TEXTS))
    [kept] = cache.glob("*.blob")
    written = kept.stat().st_ino
    assert ws.load(openvino_folder)(list(TEXTS)) == first
    assert [path.stat().st_ino for path in cache.glob("*.blob")] == [written]


def test_other_threads_are_another_graph(openvino_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", count)
        ws.load(openvino_folder)
    assert len(list(cache.glob("*.blob"))) == 2


@pytest.mark.parametrize("damage", ["byte", "short", "empty", "other"])
def test_a_damaged_cache_is_not_used(openvino_folder: Path, cache: Path, damage: str) -> None:
    expected = ws.load(openvino_folder)(list(TEXTS))
    [kept] = cache.glob("*.blob")
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes({"byte": content, "short": content[:99], "empty": b"", "other": b"x" * 5000}[damage])
    assert ws.load(openvino_folder)(list(TEXTS)) == expected
    assert ws.load(openvino_folder)(list(TEXTS)) == expected  # and it was mended


def test_a_cache_that_cannot_be_written_is_done_without(
    openvino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("WARMSTART_CACHE", str(tmp_path / "file"))
    assert ws.load(openvino_folder)("good").tokens > 0


def test_the_cache_keeps_few_graphs(openvino_folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    for i in range(20):
        (cache / f"{i}.blob").write_bytes(b"old")
    ws.load(openvino_folder)
    assert len(list(cache.glob("*"))) == 8


def test_padding_is_planned_for_where_a_graph_does_not_drop_it(
    openvino_folder: Path, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of earlier versions do not say, and their graphs compute padding."""
    packed = ws.load(openvino_folder)
    monkeypatch.setattr(graph_writer("openvino"), "PACKS", False)
    folder = tmp_path / "older"
    ws.export(tiny("bert"), folder, data=rows(), tolerance=ws.Tolerance(rows=8))
    edit_record(folder, lambda record: (record.update(record=1), record.pop("packed")))
    padded = ws.load(folder)
    assert packed.runtime.shapes.call_tokens is None and padded.runtime.shapes.call_tokens is not None
    scores = [np.array([list(p.scores.values()) for p in pipe(list(TEXTS))]) for pipe in (packed, padded)]
    assert np.abs(scores[0] - scores[1]).max() <= 1e-5
    batch = collate(list(packed.task.encode(rows(5))), packed.task.pads)
    tokens, places = (positions(pipe.runtime, batch) for pipe in (packed, padded))
    assert places == batch.inputs["input_ids"].size and batch.inputs["attention_mask"].sum() <= tokens < places


def test_one_long_text_does_not_widen_many_short_ones() -> None:
    shapes = Shapes(768, rounded=True)
    [long, *short] = shapes.plan([10] * 100 + [512], max_tokens=4096)
    assert long == [100] and [len(batch) for batch in short] == [76, 24]


# --- running ------------------------------------------------------------------------------------------------------


def test_threads_share_a_runtime(openvino_folder: Path, cache: Path) -> None:
    pipe = ws.load(openvino_folder)
    expected = [as_dict(prediction) for prediction in pipe(list(TEXTS))]
    wrong: list[object] = []

    def work() -> None:
        for _ in range(20):
            found = [as_dict(prediction) for prediction in pipe(list(TEXTS))]
            if found != expected:
                wrong.append(found)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_outputs_are_no_views_of_memory_that_is_used_again(openvino_folder: Path, cache: Path) -> None:
    pipe = ws.load(openvino_folder)
    one, two = (collate(list(pipe.task.encode(rows(6)[i : i + 1])), pipe.task.pads) for i in (0, 3))
    first = pipe.runtime.run(one)["logits"]
    kept = first.copy()
    pipe.runtime.run(two)
    assert (first == kept).all()


def test_memory_that_runs_out_is_a_memory_error(openvino_folder: Path, cache: Path) -> None:
    from warmstart.engine.runtime_openvino import OpenVinoRuntime

    class Full:
        def create_infer_request(self) -> Full:
            return self

        def infer(self, inputs: Any) -> Any:
            raise RuntimeError("Failed to allocate 99 bytes of memory")

    pipe = ws.load(openvino_folder)
    batch = collate(list(pipe.task.encode(rows(1))), pipe.task.pads)
    with pytest.raises(MemoryError):
        OpenVinoRuntime(Full(), ("input_ids",), ("logits",), Shapes(512), packed=False).run(batch)


# --- tracing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packs", [True, False])
def test_a_model_is_traced_from_a_copy(tiny: Callable[..., Path], packs: bool) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    pipe.model.train()
    before, digest = pipe.model.config.to_dict(), weights_digest(pipe.model)
    traced = trace(pipe.model, pipe.task, list(pipe.task.encode(rows(6))), packs=packs)
    assert isinstance(traced, Traced) and traced.packed is packs
    assert traced.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert traced.outputs == (("logits", (None, 2)),)
    assert pipe.model.training and pipe.model.config.to_dict() == before and weights_digest(pipe.model) == digest


@pytest.mark.parametrize("packs", [True, False])
def test_a_classifier_is_traced_without_what_nobody_reads(tiny: Callable[..., Path], packs: bool) -> None:
    """Of the last layer only keys and values run for every token: products of (B, T, H), not of (B, H)."""
    pipe = ws.load(tiny("bert"), device="cpu")
    traced = trace(pipe.model, pipe.task, list(pipe.task.encode(rows(6))), packs=packs)
    products = [node for node in traced.program.graph.nodes if node.target is torch.ops.aten.linear.default]
    every_token = [node for node in products if node.args[0].meta["val"].ndim == 3]
    layers = pipe.model.config.num_hidden_layers
    assert len(every_token) == 6 * (layers - 1) + 2 and len(products) - len(every_token) == 4 + 2


def test_a_digest_of_weights_sees_values_and_names(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert"), device="cpu").model
    before = weights_digest(model)
    weight = model.classifier.weight
    weight.data[0, 0] += 1
    assert weights_digest(model) != before
    weight.data[0, 0] -= 1
    assert weights_digest(ws.load(tiny("bert"), device="cpu").model) == before


def test_ranges_do_not_count_padding() -> None:
    ranges = Ranges(1)
    values = np.array([[[1.0, -1.0], [99.0, 99.0]], [[2.0, 0.0], [1.0, 1.0]]])
    ranges.add([values], np.array([[1, 0], [1, 1]]))
    [loss] = ranges.loss()
    seen = np.array([1.0, -1.0, 2.0, 0.0, 1.0, 1.0])
    assert loss == pytest.approx(3 / np.sqrt((seen**2).mean()))


def test_nothing_is_reported_to_the_makers_of_openvino(openvino_folder: Path, tmp_path: Path) -> None:
    """Importing it would write an identity into the home folder and send events."""
    folder = copy_of(openvino_folder, tmp_path / "exported")
    code = (
        f"import sys, warmstart as ws; ws.load({str(folder)!r})('good'); "
        "print(*[name for name in sys.modules if 'telemetry' in name and 'openvino_telemetry' in name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": "", "WARMSTART_CACHE": str(tmp_path / "c")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert not (tmp_path / "intel").exists()


def test_a_signal_is_survived_after_exported_pipelines_have_gone(openvino_folder: Path) -> None:
    """Each core of OpenVINO sets a stack for signal handlers; two that went in the order they came left a freed one."""
    program = """
import gc, os, signal, sys
import warmstart as ws
first = ws.load(sys.argv[1]); first("a")
second = ws.load(sys.argv[1]); second("b")
del first; gc.collect()
del second; gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program, str(openvino_folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr[-2000:]
