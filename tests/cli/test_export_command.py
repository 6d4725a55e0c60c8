"""`warmstart export`, and the other commands over what it wrote; in a process of its own, what predicting imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import warmstart as ws
from support.exports import rows, tiny_export
from warmstart.tasks import as_dict

HEAVY = {"torch", "transformers", "pyarrow", "pydantic", "rich", "pandas", "datasets", "onnx", "nncf"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(16)), encoding="utf-8")
    return path


def test_export_says_how_it_agrees(warmstart: Any, tiny: Callable[..., Path], data: Path) -> None:
    done = warmstart("export", "-m", tiny("distilbert"), "-o", "out", "-d", data, "--parity-rows", 16, "--json")
    assert done.code == 0, done.err
    [result] = done.lines
    assert result["format"] == "openvino" and result["precision"] == "fp32" and result["bytes"] > 10_000
    assert result["parity"]["passed"] and result["parity"]["rows"] == 16 and result["parity"]["flips"] == []
    assert Path("out/export.json").is_file()
    again = warmstart("export", "-m", tiny("distilbert"), "-o", "out", "-d", data)
    assert again.code == 2 and "target-exists" in again.err


def test_plain_transformers_loads_an_exported_chat_model(
    warmstart: Any, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    source, data = tiny("llama", "generation"), tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("good words", "a film", "happy", "sad")))
    done = warmstart("export", "-m", source, "-o", "out", "--format", "safetensors", "-d", data, "--parity-rows", 4)
    assert done.code == 0, done.err
    messages = [{"role": "user", "content": "is it fun"}]
    prompts, answers = [], []
    for folder in (source, Path("out").absolute()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder)
        prompts.append(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        inputs = tokenizer(prompts[-1], return_tensors="pt", return_token_type_ids=False)
        asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        answers.append(model.generate(**inputs, **asked).tolist())
    assert "is it fun" in prompts[0] and prompts[1] == prompts[0]
    assert answers[1] == answers[0]


def test_a_failed_gate_lists_the_rows_and_is_exit_code_1(warmstart: Any, tiny: Callable[..., Path], data: Path) -> None:
    done = warmstart(
        "export", "-m", tiny("bert"), "-o", "out", "--format", "onnx", "-d", data, "--parity-rows", 8,
        "--max-difference", 0,
    )  # fmt: skip
    assert done.code == 1 and "parity-failed" in done.err and done.out == ""
    assert not Path("out").exists()


def test_rows_are_asked_for_by_the_option_that_gives_them(warmstart: Any, tiny: Callable[..., Path]) -> None:
    done = warmstart("export", "-m", tiny("bert"), "-o", "out", "--precision", "int8")
    assert done.code == 2 and "-d ROWS" in done.err


def test_other_commands_take_it_unchanged(warmstart: Any, tiny_root: Path, data: Path) -> None:
    folder = tiny_export(tiny_root, "openvino")
    assert warmstart("predict", "-m", folder, "-i", data, "-o", "out.csv").code == 0
    assert Path("out.csv").read_text(encoding="utf-8").count("\n") == 17
    labelled = Path("labelled.jsonl")
    labelled.write_text(
        "".join(
            json.dumps(dict(row) | {"label": ("NEGATIVE", "POSITIVE")[i % 2]}) + "\n" for i, row in enumerate(rows())
        ),
        encoding="utf-8",
    )
    [evaluation] = warmstart("evaluate", "-m", folder, "-d", labelled, "--json").lines
    assert 0 <= evaluation["metrics"]["accuracy"]["value"] <= 1
    refused = warmstart("train", "-m", folder, "-d", labelled, "-o", "run")
    assert refused.code == 4 and "exported-has-no-model" in refused.err


def test_inspect_shows_the_record(warmstart: Any, tiny_root: Path) -> None:
    folder = tiny_export(tiny_root, "openvino")
    [facts] = warmstart("inspect", folder, "--json").lines
    assert (facts["format"], facts["precision"], facts["labels"]) == ("openvino", "fp32", ["NEGATIVE", "POSITIVE"])
    assert facts["parity"]["passed"] is True and facts["parity"]["flipped"] == 0
    shown = warmstart("inspect", folder)
    assert shown.code == 0 and "openvino" in shown.out and "agreement 1.0" in shown.out


@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_predicting_imports_neither_torch_nor_transformers(tiny_root: Path, tmp_path: Path, format: str) -> None:
    folder = tiny_export(tiny_root, format)
    code = (
        "import sys; from warmstart.cli.main import run; "
        f"code = run(['predict', '-m', {str(folder)!r}, '--json', 'a good film']); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WARMSTART_CACHE": str(tmp_path)}
    for _ in range(2):  # compiled, and from what was kept
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert not HEAVY & set(done.stderr.split()), HEAVY & set(done.stderr.split())
        assert {"numpy", "tokenizers", {"openvino": "openvino", "onnx": "onnxruntime"}[format]} <= set(
            done.stderr.split()
        )
        assert json.loads(done.stdout)["label"] in ("NEGATIVE", "POSITIVE")
    assert json.loads(done.stdout)["score"] == pytest.approx(as_dict(ws.load(folder)("a good film"))["score"], abs=1e-6)
