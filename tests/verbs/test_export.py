"""Export, from a checkpoint to a folder that predicts: tiny models, and once the real starter with real reviews."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import warmstart as ws
from support.damage import copy_of
from support.exports import TEXTS, rows, tiny_export
from warmstart.checkpoints import commit_folder, find, verify, verify_export
from warmstart.cli.main import root
from warmstart.errors import CheckpointError, DataError, UsageError, WarmstartError
from warmstart.rows import Row
from warmstart.tasks import as_dict
from warmstart.verbs import export_graph

REVIEWS = Path(__file__).parents[3] / "shared" / "data" / "reviews"
FEW = ws.Tolerance(rows=8)


def close(left: Any, right: Any) -> bool:
    a, b = as_dict(left), as_dict(right)
    return a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


@pytest.fixture(params=["openvino", "onnx"])
def exported(request: pytest.FixtureRequest, tiny_root: Path) -> Path:
    return tiny_export(tiny_root, request.param)


# --- what it is ---------------------------------------------------------------------------------------------------


def test_an_exported_folder_answers_as_its_source(exported: Path, tiny: Callable[..., Path]) -> None:
    source, pipe = ws.load(tiny("bert"), device="cpu"), ws.load(exported)
    texts = [*TEXTS, "", "a [SEP] b", "x" * 900, "caf\u00e9 \udc80"]
    for ours, theirs in zip(pipe(texts), source(texts), strict=True):
        assert close(ours, theirs)
        assert (ours.tokens, ours.truncated, ours.flags) == (theirs.tokens, theirs.truncated, theirs.flags)
    assert pipe.device == "cpu" and pipe.tokenizer is pipe.task.tokenizer
    assert pipe.tokenizer.limit == source.task.tokenizer.limit


def test_the_record_tells_what_it_is(exported: Path, tiny: Callable[..., Path]) -> None:
    record = verify_export(exported).record
    assert (record.task, record.labels) == ("text-classification", ("NEGATIVE", "POSITIVE"))
    assert record.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert [(output.name, output.shape) for output in record.outputs] == [("logits", (None, 2))]
    assert record.source["name"] == str(tiny("bert")) and len(record.source["weights_sha256"]) == 64
    assert record.parity["passed"] and record.parity["rows"] == 24 and record.parity["flips"] == []
    assert {"warmstart", "torch", record.format.replace("onnx", "onnxruntime")} <= set(record.versions)


def test_a_model_is_an_error_that_names_the_source(exported: Path, tiny: Callable[..., Path], tmp_path: Path) -> None:
    pipe = ws.load(exported)
    calls: list[Callable[[], Any]] = [
        lambda: pipe.model,
        lambda: pipe.model,  # a second time, too
        lambda: verify(exported),
        lambda: ws.train(exported, rows(), output=tmp_path / "run"),
        lambda: ws.export(exported, tmp_path / "again", data=rows(), tolerance=FEW),
    ]
    for call in calls:
        with pytest.raises(CheckpointError) as caught:
            call()
        assert caught.value.code == "exported-has-no-model" and str(tiny("bert")) in caught.value.fix
    assert not any(tmp_path.iterdir())


def test_evaluate_judges_it_as_its_source(exported: Path, tiny: Callable[..., Path]) -> None:
    labelled = [dict(row) | {"label": ("NEGATIVE", "POSITIVE")[i % 2]} for i, row in enumerate(rows(12))]
    ours, theirs = (ws.evaluate(ws.load(name, device="cpu"), labelled) for name in (exported, tiny("bert")))
    assert ours.metrics == theirs.metrics
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-6)


@pytest.mark.parametrize(
    ("asked", "value"),
    [("task", "sentence-embedding"), ("labels", ["a", "b"]), ("device", "cuda"), ("dtype", "bfloat16")],
)
def test_a_graph_cannot_be_made_another(exported: Path, asked: str, value: Any) -> None:
    with pytest.raises(UsageError) as caught:
        ws.load(exported, **{asked: value})
    assert caught.value.code in ("export-is-fixed", "device-unavailable")
    assert ws.load(exported, task="text-classification", device="cpu", dtype="float32").task.name


def test_options_may_change(exported: Path) -> None:
    text = "a good film " * 40
    assert ws.load(exported, options={"max_length": 16})(text).tokens == 16
    windows = ws.load(exported, options={"long_text": "windows", "stride": 4, "max_length": 16})(text)
    assert not windows.truncated and windows.tokens > 100
    with pytest.raises(UsageError) as caught:
        ws.load(exported, options={"strid": 4})
    assert caught.value.code == "option-unknown"


def test_options_of_the_export_are_kept(tiny: Callable[..., Path], tmp_path: Path) -> None:
    pipe = ws.load(tiny("distilbert"), options={"max_length": 12, "long_text": "windows", "stride": 3}, device="cpu")
    ws.export(pipe, tmp_path / "out", data=rows(), tolerance=FEW)
    again = ws.load(tmp_path / "out")
    assert (again.task.long_text, again.task.stride, again.tokenizer.limit) == ("windows", 3, 12)  # type: ignore[attr-defined]
    assert ws.load(tmp_path / "out", options={"max_length": 64}).tokenizer.limit == 64


def test_a_run_is_found_like_any_checkpoint(exported: Path) -> None:
    assert find(exported).source == "folder"
    assert (exported / "config.json").is_file() and (exported / "tokenizer.json").is_file()


def test_weights_can_be_exported_too(tiny: Callable[..., Path], tmp_path: Path) -> None:
    result = ws.export(tiny("roberta"), tmp_path / "out", format="safetensors", data=rows(), tolerance=FEW)
    assert result.parity.difference < 1e-6 and result.parity.agreement == 1
    assert verify(tmp_path / "out").task == "text-classification"
    assert not (tmp_path / "out" / "model").exists()
    kept = json.loads((tmp_path / "out" / "parity.json").read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(result.parity.as_dict())) and kept["passed"] and kept["rows"] == 24
    assert "parity.json" in json.loads((tmp_path / "out" / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
    [shown] = CliRunner().invoke(root, ["inspect", str(tmp_path / "out"), "--json"]).stdout.splitlines()
    assert json.loads(shown)["parity"] == {name: kept[name] for name in kept if name != "flips"} | {"flipped": 0}
    assert close(ws.load(tmp_path / "out", device="cpu")("good"), ws.load(tiny("roberta"), device="cpu")("good"))


# --- int8 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_int8_is_smaller_and_says_how_it_was_made(tiny_root: Path, format: str) -> None:
    record = verify_export(tiny_export(tiny_root, format, "int8")).record
    assert record.precision == "int8" and record.calibration is not None
    assert record.calibration["rows"] == 6 and not record.calibration["shared_with_gate"]
    assert {"openvino": "of the rows", "onnx": "of each batch"}[format] in record.calibration["ranges"]
    assert ("ranges" in record.calibration["rows_decide"]) == (format == "openvino")
    # Of two layers, the last with keys and values alone: a classifier reads the rest of it once a text.
    assert record.calibration["products"] == 8 and len(record.calibration["in_float"]) == 1
    graph = (tiny_export(tiny_root, format, "int8") / record_file(format)).read_bytes()
    assert (b"i8" if format == "openvino" else b"MatMulInteger") in graph
    assert ws.load(tiny_export(tiny_root, format, "int8"))("good").tokens > 0


def record_file(format: str) -> str:
    return {"openvino": "model.xml", "onnx": "model.onnx"}[format]


def test_an_int8_graph_that_fails_is_tried_with_less_int8_and_then_refused(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(export_graph, "_IN_FLOAT", (0, 0, 1 / 2))  # no outliers: the first is left out
    impossible = dataclasses.replace(FEW, difference=0.0)
    with caplog.at_level(logging.INFO, logger="warmstart"), pytest.raises(WarmstartError) as caught:
        ws.export(tiny("bert"), tmp_path / "out", format="onnx", precision="int8", data=rows(), tolerance=impossible)
    assert caught.value.code == "parity-failed"
    assert "0 of 8 matrix products in float32" in caplog.text and "4 of 8 matrix products in float32" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_few_rows_both_calibrate_and_judge_which_is_said(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = ws.Tolerance(rows=8, agreement=0.5, difference=None)
    with caplog.at_level(logging.WARNING, logger="warmstart"):
        ws.export(tiny("bert"), tmp_path / "o", format="onnx", precision="int8", data=rows(8), tolerance=allowed)
    assert "the same ones calibrate and judge" in caplog.text
    calibration = verify_export(tmp_path / "o").record.calibration
    assert calibration is not None and calibration["shared_with_gate"] and calibration["rows"] == 8


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_graph_that_does_not_agree_leaves_nothing(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        """A writer whose graph is another model's."""

        PACKS = True

        def convert(self, traced: Any) -> Any:
            return self

        def write(self, path: Path) -> None:
            other = tiny_export(tiny("bert").parent)
            for name in ("model.xml", "model.bin"):
                (path.parent / name).write_bytes((other / name).read_bytes())

    changed = ws.load(tiny("bert"), device="cpu")
    changed.model.classifier.weight.data += 0.5
    monkeypatch.setattr(export_graph, "graph_writer", lambda format: Wrong())
    with pytest.raises(WarmstartError) as caught:
        ws.export(changed, tmp_path / "out", data=rows(), tolerance=FEW)
    assert caught.value.code == "parity-failed" and "allowed" in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "near"),
    [
        ({"format": "openvin"}, "format-unknown", "openvino"),
        ({"precision": "int4"}, "precision-unknown", "int8"),
        ({"format": "safetensors", "precision": "int8"}, "precision-unsupported", "openvino"),
        ({"task": "sentiment"}, "task-unknown", "sentiment-analysis"),
        ({"precision": "int8"}, "export-rows-needed", "-d ROWS"),
        ({"task": "sentence-embedding", "precision": "int8"}, "export-rows-needed", "data="),
    ],
)
def test_a_call_that_is_wrong_says_so(
    tiny: Callable[..., Path], tmp_path: Path, options: dict[str, str], code: str, near: str
) -> None:
    with pytest.raises(UsageError) as caught:
        ws.export(tiny("bert"), tmp_path / "out", **options)  # type: ignore[arg-type]
    assert caught.value.code == code and near in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_left_alone(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(UsageError) as caught:
        ws.export(tiny("bert"), tmp_path / "out", data=rows())
    assert caught.value.code == "target-exists" and (tmp_path / "out" / "mine").read_text() == "kept"


def test_rows_that_are_none(tiny: Callable[..., Path], tmp_path: Path) -> None:
    bad: list[tuple[Any, str]] = [
        ([], "no-rows"),
        (rows(3), "parity-rows-too-few"),
        ([Row({"body": 1})], "column-missing"),
    ]
    for data, code in bad:
        with pytest.raises(DataError) as caught:
            ws.export(tiny("bert"), tmp_path / "out", data=data)
        assert caught.value.code == code, caught.value
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_reads_more_than_a_text_needs_rows(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ws.export(tiny("bert", labels=("score",)), tmp_path / "out", task="rerank")
    assert caught.value.code == "export-rows-needed" and "rerank" in caught.value.what


def test_a_model_that_cannot_be_traced_is_told_so(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    original = pipe.model.forward

    def forward(**inputs: Any) -> Any:
        if inputs["input_ids"].sum().item() < 0:  # which way it goes depends on the values
            raise AssertionError
        return original(**inputs)

    monkeypatch.setattr(pipe.model, "forward", forward)
    with pytest.raises(UsageError) as caught:
        ws.export(pipe, tmp_path / "out", data=rows(), tolerance=FEW)
    assert caught.value.code == "export-unsupported" and "safetensors" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_a_kill_in_the_middle_leaves_no_folder(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "model.xml").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        commit_folder(tmp_path / "out", write)
    assert list(tmp_path.iterdir()) == []


# --- the real starter ---------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs ../shared/data/reviews")
def test_the_starter_in_fp32_on_real_reviews(tmp_path: Path) -> None:
    lines = (REVIEWS / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:256]
    data = [json.loads(line) for line in lines]
    result = ws.export("starter", tmp_path / "out", data=data)
    assert result.parity.rows == result.parity.rows_alone == 256
    assert result.parity.agreement == 1 and result.parity.difference < 1e-4
    labels = [prediction.label for prediction in ws.load(copy_of(tmp_path / "out", tmp_path / "moved"))(data)]
    assert labels == [prediction.label for prediction in ws.load("starter", device="cpu")(data)]


@pytest.mark.real_data
@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs ../shared/data/reviews")
@pytest.mark.parametrize(
    ("format", "given", "calibrating", "judging"),
    [
        ("openvino", None, 300, 1024),  # what is taken without rows of one's own
        ("onnx", 342, 85, 257),  # the fewest of which some are put apart and 256 others judge
    ],
)
def test_the_starter_in_int8_passes_the_default_gate_on_real_reviews(
    tmp_path: Path, format: str, given: int | None, calibrating: int, judging: int
) -> None:
    lines = (REVIEWS / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    data = given and [json.loads(line) for line in lines[:given]]
    result = ws.export("starter", tmp_path / "out", format=format, precision="int8", data=data)
    record = verify_export(tmp_path / "out").record
    assert record.calibration is not None
    assert (record.calibration["rows"], record.calibration["shared_with_gate"]) == (calibrating, False)
    assert record.parity["passed"] and (record.parity["rows"], record.parity["rows_alone"]) == (judging, 256)
    assert record.parity["agreement"] >= 0.99 and record.parity["tolerance"]["agreement"] == 0.99
    assert (result.parity.agreement, result.precision) == (record.parity["agreement"], "int8")
    assert len(result.in_float) < record.calibration["products"] / 4
