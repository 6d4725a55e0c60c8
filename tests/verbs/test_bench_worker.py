"""What a worker measures: time, memory, the positions a model computes, its best matrix product."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import warmstart as ws
from support.unpadding import multiplied
from warmstart.engine import products
from warmstart.errors import UsageError
from warmstart.verbs.bench_own import Own, answer_of, plain
from warmstart.verbs.bench_worker import (
    count_positions,
    described,
    fastest,
    serve,
)

TEXTS = ["good film", "a dull and tired plot that never begins", "fun"]


def own(checkpoint: Path) -> Own:
    pipe = ws.load(checkpoint, device="cpu")
    return Own(pipe, answer_of(pipe))


def asked(contestant: Any, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    outbox = io.StringIO()
    serve(contestant, [json.dumps(message) for message in messages], outbox)
    return [json.loads(line) for line in outbox.getvalue().splitlines()]


def run(**more: Any) -> dict[str, Any]:
    return {"ask": "run", "workload": "w", "setting": None, "survey": False, **more}


def test_our_own_contestant_answers_as_the_pipeline(tiny: Callable[..., Path]) -> None:
    contestant = own(tiny("bert"))
    rows = [{"text": text} for text in TEXTS]
    loaded, surveyed, timed, peak, unknown = asked(
        contestant, {"ask": "rows", "workload": "w", "rows": rows}, run(survey=True), run(), {"ask": "peak"},
        run(workload="x"),
    )  # fmt: skip
    assert loaded == {} and unknown["error"]["kind"] == "KeyError"
    predictions = contestant.pipe(TEXTS)
    tokens = sum(prediction.tokens for prediction in predictions)
    assert surveyed["survey"]["answers"] == [prediction.label for prediction in predictions]
    assert surveyed["survey"]["tokens"] == tokens
    assert surveyed["survey"]["positions"] >= tokens
    assert set(timed) == {"seconds", "cpu_seconds", "peak_mb"} and peak["gflops"] > 0


def test_positions_are_those_that_are_computed_padding_or_not(tiny: Callable[..., Path]) -> None:
    """A padded model computes rows x longest, an unpadded one the tokens."""
    pipe = ws.load(tiny("bert"), device="cpu")
    inputs = pipe.tokenizer(TEXTS, padding=True, return_tensors="pt")
    tokens, positions = int(inputs["attention_mask"].sum()), inputs["input_ids"].numel()
    assert tokens < positions

    def forward() -> str:
        with torch.inference_mode():
            pipe.model(**inputs)
        return "done"

    ws.unpad(pipe.model)
    assert count_positions(pipe.model, forward) == ("done", tokens)
    ws.pad(pipe.model)
    assert count_positions(pipe.model, forward) == ("done", positions)
    assert not any(module._forward_hooks for module in pipe.model.modules() if isinstance(module, torch.nn.Linear))


@pytest.mark.parametrize("onednn", [True, False])
def test_positions_of_layers_written_out_are_those_that_are_timed(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, onednn: bool
) -> None:
    """Rows by which products are rounded up are counted, the code that runs is that of an uncounted run."""
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: onednn)
    pipe = ws.load(tiny("bert"), device="cpu")
    texts = [" ".join(["film"] * (3 + 5 * row)) for row in range(8)]
    inputs = pipe.tokenizer(texts, padding=True, return_tensors="pt")
    tokens = int(inputs["attention_mask"].sum())

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return pipe.model(**inputs).logits

    with multiplied(pipe.model) as uncounted:
        logits = forward()
    with multiplied(pipe.model) as computed:
        found, positions = count_positions(pipe.model, forward)
    assert torch.equal(found, logits) and computed.calls == uncounted.calls
    assert positions == computed.calls[0] and tokens <= positions < tokens * 17 / 16
    assert (positions > tokens) == onednn
    assert not any(module._forward_hooks for module in pipe.model.modules() if "forward" in vars(module))
    # Training rounds nothing up; under autocast the layer's own code runs.
    assert count_positions(pipe.model.train(), lambda: pipe.model(**inputs).logits.shape)[1] == tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert count_positions(pipe.model.eval(), forward)[1] == tokens


def test_a_model_without_a_linear_layer_is_not_counted() -> None:
    model = torch.nn.Sequential(torch.nn.ReLU())
    assert count_positions(model, lambda: 1) == (1, None)


def test_a_graph_is_counted_at_its_runtime(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    rows = [{"text": text} for text in TEXTS]
    lengths = [prediction.tokens for prediction in pipe(TEXTS)]
    contestant = Own(pipe, answer_of(pipe), exported=True)
    assert contestant.model is None and contestant.gemm_peak() is None
    assert sum(lengths) <= contestant.positions(rows, None) <= len(rows) * max(lengths)


@pytest.mark.parametrize(("labels", "kind"), [(("a", "b", "c"), str), (("score",), float)])
def test_the_answer_is_what_the_task_answers(tiny: Callable[..., Path], labels: Sequence[str], kind: type) -> None:
    contestant = own(tiny("roberta", labels=labels))
    [answer] = contestant.answers([{"text": "good"}], None)
    assert isinstance(answer, kind) and contestant.facts["problem"] == ("single" if kind is str else "regression")


def test_an_embedding_answers_with_its_vector(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert", "base"), task="sentence-embedding", device="cpu")
    [vector] = Own(pipe, answer_of(pipe)).answers([{"text": "good"}], None)
    np.testing.assert_allclose(vector, pipe("good").embedding)
    json.dumps(vector)


def test_rows_of_one_text_are_texts() -> None:
    rows = [{"text": "a"}, {"text": "a", "text_pair": "b"}]
    assert plain(rows) == ["a", rows[1]]


def test_errors_travel_as_json() -> None:
    error = described(UsageError("some-code", "what", fix="next", where="file", value={1, 2}))
    assert error["kind"] == "UsageError" and error["code"] == "some-code" and error["next"] == "next"
    assert described(ValueError("x" * 10_000)) == {"kind": "ValueError", "what": "x" * 2000}
    json.dumps(error)


def test_the_shortest_time_is_kept() -> None:
    calls: list[int] = []
    assert 0 < fastest(lambda: calls.append(1), seconds=0.02) < 0.02
    assert len(calls) > 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_the_peak_of_memory_begins_anew() -> None:
    """In a process of its own: a large one has freed memory at hand, and its peak need not rise."""
    code = (
        "import numpy as np\n"
        "from warmstart.verbs.bench_worker import forget_peak_memory, peak_memory_mb\n"
        "held = np.ones(64_000_000 // 8)\n"
        "del held\n"
        "high = peak_memory_mb()\n"
        "forget_peak_memory()\n"
        "low = peak_memory_mb()\n"
        "again = np.ones(64_000_000 // 8)\n"
        "print(high, low, peak_memory_mb())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    high, low, risen = map(float, found.stdout.split())
    assert high - low > 50 and risen - low > 50
