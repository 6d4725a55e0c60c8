"""Whole runs with recipes: what they save, what they say, what they refuse."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import warmstart as ws
from support.kills import RECIPES
from support.runs import FAST, assert_same, reviews, weights_sha256
from warmstart.training.depth import layers_of
from warmstart.training.lora import add_lora
from warmstart.training.optimizers import adamw
from warmstart.verbs.fitting import Progress
from warmstart.verbs.weights import differing_tensors

ROWS = reviews(40)


def train(checkpoint: Path, output: Path, *, validation: Any = None, progress: Any = None, **config: Any) -> ws.Run:
    settings = ws.TrainConfig(**{"epochs": 2, **FAST, **config})
    return ws.train(checkpoint, ROWS[:28], output=output, validation=validation, config=settings, progress=progress)


def weights(run: ws.Run) -> dict[str, torch.Tensor]:
    return {name: values.clone() for name, values in run.pipeline.model.state_dict().items()}


def steps(run: ws.Run) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation" not in line]


# --- layer_decay ----------------------------------------------------------------------------------------------------


def test_layer_decay_moves_embeddings_least(tiny: Callable[..., Path], tmp_path: Path) -> None:
    start = ws.load(tiny("bert")).model.state_dict()

    def moved(run: ws.Run) -> float:
        name = "bert.embeddings.word_embeddings.weight"
        return (weights(run)[name] - start[name]).norm().item()

    plain = train(tiny("bert"), tmp_path / "plain")
    slow = train(tiny("bert"), tmp_path / "slow", layer_decay=ws.LayerDecay(factor=0.3))
    assert 0 < moved(slow) < moved(plain) / 5
    assert [line["learning_rate"] for line in steps(slow)] == [line["learning_rate"] for line in steps(plain)]


def test_a_factor_of_one_changes_nothing(tiny: Callable[..., Path], tmp_path: Path) -> None:
    one, plain = (
        train(tiny("bert"), tmp_path / "a", layer_decay=ws.LayerDecay(factor=1)),
        train(tiny("bert"), tmp_path / "b"),
    )
    for name, values in weights(plain).items():
        torch.testing.assert_close(weights(one)[name], values, rtol=1e-5, atol=1e-6)


# --- gradient_checkpointing -----------------------------------------------------------------------------------------


def test_gradient_checkpointing_trains_the_same_bits(tiny: Callable[..., Path], tmp_path: Path) -> None:
    asked = train(tiny("bert"), tmp_path / "a", gradient_checkpointing=True)
    plain = train(tiny("bert"), tmp_path / "b")
    assert weights_sha256(asked) == weights_sha256(plain)
    assert [line["loss"] for line in steps(asked)] == [line["loss"] for line in steps(plain)]


# --- ema ------------------------------------------------------------------------------------------------------------


def test_the_average_is_what_is_evaluated_and_saved(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """The same steps as without it; its weights are the average of those a run without it has after each step."""
    followed: list[dict[str, torch.Tensor]] = []

    def follow(pipe: ws.Pipeline) -> Callable[[Progress], None]:
        return lambda seen: followed.append({n: p.detach().clone() for n, p in pipe.model.named_parameters()})

    from warmstart.verbs import train as verb

    real = verb.fit_pipeline

    def spied(prepared: Any, directory: Any, progress: Any, *rest: Any) -> Any:
        followed.append({n: p.detach().clone() for n, p in prepared.pipeline.model.named_parameters()})
        return real(prepared, directory, follow(prepared.pipeline), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verb, "fit_pipeline", spied)
        train(tiny("bert"), tmp_path / "plain")
    expected = {name: values.double() for name, values in followed[0].items()}
    for step, after in enumerate(followed[1:], start=1):
        kept = min(0.8, (1 + step) / (10 + step))
        expected = {name: kept * expected[name] + (1 - kept) * after[name].double() for name in expected}
    ema = ws.WeightAverage(decay=0.8)
    run = train(tiny("bert"), tmp_path / "ema", ema=ema)
    assert len(followed) == 1 + run.steps
    saved = ws.load(run.model).model.state_dict()
    for name, values in expected.items():
        torch.testing.assert_close(saved[name].double(), values, rtol=1e-4, atol=1e-6)
        assert torch.equal(saved[name], run.pipeline.model.state_dict()[name])
    validated = train(tiny("bert"), tmp_path / "validated", ema=ema, validation=ROWS[28:])
    assert validated.validation is not None
    if validated.best_step == validated.steps:
        assert weights_sha256(validated) == weights_sha256(run)
    again = ws.evaluate(ws.load(validated.model), ROWS[28:])
    assert again.loss == pytest.approx(validated.validation.loss, abs=1e-6)


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_an_interrupted_run_goes_on_to_the_same_bits(name: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Real kills: test_kills.py."""

    def stop(seen: Progress) -> None:
        if seen.step.step == 3 and seen.validation is None:
            os.kill(os.getpid(), signal.SIGINT)

    peace = train(tiny("bert"), tmp_path / "peace", validation=ROWS[28:], **RECIPES[name])
    with pytest.raises(KeyboardInterrupt):
        train(tiny("bert"), tmp_path / "r", validation=ROWS[28:], progress=stop, **RECIPES[name])
    resumed = train(tiny("bert"), tmp_path / "r", validation=ROWS[28:], **RECIPES[name])
    assert differing_tensors(resumed.model, peace.model) == []
    assert [line["step"] for line in steps(resumed)] == list(range(1, peace.steps + 1))
    assert [line["loss"] for line in steps(resumed)] == [line["loss"] for line in steps(peace)]
    starts = [json.loads(line) for line in (resumed.path / "attempts.jsonl").read_text().splitlines()]
    assert [line["began_at"] for line in starts if "began_at" in line] == [0, 3]
    assert resumed.metrics == peace.metrics


def test_another_recipe_is_another_run(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def stop(seen: Progress) -> None:
        if seen.step.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    ema = ws.WeightAverage(decay=0.8)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("bert"), tmp_path / "r", ema=ema, progress=stop)
    with pytest.raises(ws.UsageError) as caught:
        train(tiny("bert"), tmp_path / "r", ema=ws.WeightAverage(decay=0.9))
    assert caught.value.code == "resume-differs" and "train.ema.decay: 0.8 → 0.9" in caught.value.what
    with pytest.raises(ws.UsageError) as caught:
        train(tiny("bert"), tmp_path / "r", ema=ema, loss=ws.Loss(label_smoothing=0.1))
    assert "train.loss.label_smoothing: none → 0.1" in caught.value.what
    resumed = train(tiny("bert"), tmp_path / "r", ema=ema, gradient_checkpointing=True)  # has no effect on the bits
    peace = train(tiny("bert"), tmp_path / "peace", ema=ema)
    assert differing_tensors(resumed.model, peace.model) == []


# --- lora -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "modernbert", "gpt2"])
def test_lora_ends_in_a_plain_checkpoint_whose_outputs_are_those_of_the_adapters(
    tiny: Callable[..., Path], tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from warmstart.training.trained_weights import TrainedWeights

    unmerged: list[torch.Tensor] = []
    real = TrainedWeights.finish

    def finish(self: TrainedWeights) -> None:
        inputs = {"input_ids": torch.arange(24).view(2, 12) + 5, "attention_mask": torch.ones(2, 12, dtype=torch.long)}
        unmerged.append(self.model.eval()(**inputs).logits)
        real(self)
        unmerged.append(self.model(**inputs).logits)

    monkeypatch.setattr(TrainedWeights, "finish", finish)
    start = ws.load(tiny(family)).model.state_dict()
    run = train(tiny(family), tmp_path / "r", lora=ws.LoRA(rank=4, dropout=0.1), learning_rate=2e-2)
    torch.testing.assert_close(unmerged[1], unmerged[0], atol=1e-5, rtol=0)
    saved = AutoModelForSequenceClassification.from_pretrained(run.model).state_dict()
    assert saved.keys() == start.keys() == run.pipeline.model.state_dict().keys()
    assert all(p.requires_grad for p in run.pipeline.model.parameters())
    changed = {name for name, values in saved.items() if not torch.equal(values, start[name])}
    _, layers = layers_of(run.pipeline.model, asked_by="test")
    matrices = [
        name for name in saved if ".weight" in name and saved[name].ndim == 2 and (".layer" in name or ".h." in name)
    ]
    assert changed >= set(matrices) and len(matrices) >= 4 * len(layers)
    assert not [name for name in changed if "embeddings" in name or "wte" in name or "LayerNorm" in name]
    texts = [row["text"] for row in ROWS]
    assert_same(ws.load(run.path)(texts), run.pipeline(texts))


def test_only_adapters_and_head_are_in_the_optimizer(tiny: Callable[..., Path]) -> None:
    model = ws.load(tiny("bert")).model
    before = model(torch.arange(8)[None] + 5).logits
    state = torch.random.get_rng_state()
    adapter = add_lora(model, ws.LoRA(rank=2, targets=("query", "value")), seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(model(torch.arange(8)[None] + 5).logits, before)  # B is zero
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    expected = {f"bert.encoder.layer.{i}.attention.self.{m}" for i in range(2) for m in ("query", "value")}
    assert {name.partition(".lora_")[0] for name in trained if ".lora_" in name} == expected
    rest = {name for name in trained if ".lora_" not in name}
    assert rest == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    optimizer = adamw(model, learning_rate=1e-3, weight_decay=0.0)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained) == 12
    assert adapter.state().keys() == trained


def test_merging_for_a_while_gives_every_bit_back(tiny: Callable[..., Path]) -> None:
    model = ws.unpad(ws.load(tiny("bert")).model)
    plain = set(model.state_dict())
    adapter = add_lora(model, ws.LoRA(rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    inputs = {"input_ids": torch.arange(24).view(2, 12) + 5, "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    logits = model(**inputs).logits
    with pytest.raises(KeyboardInterrupt), adapter.merged():
        assert set(model.state_dict()) == plain
        torch.testing.assert_close(model(**inputs).logits, logits, atol=1e-5, rtol=1e-5)
        raise KeyboardInterrupt
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert torch.equal(model(**inputs).logits, logits)
    with pytest.raises(KeyError):
        adapter.load({})


def test_a_snapshot_of_lora_is_a_checkpoint_like_any_other(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = train(
        tiny("bert"), tmp_path / "r", lora=ws.LoRA(rank=2), save_every=2, validation=ROWS[28:], epochs=1, keep=1,
        evaluate_every=2,
    )  # fmt: skip
    [snapshot] = [path for path in (run.path / "checkpoints").iterdir() if path.name.startswith("step-")]
    assert ws.load(snapshot).model.state_dict().keys() == run.pipeline.model.state_dict().keys()
    again = ws.evaluate(ws.load(run.path), ROWS[28:])
    assert run.validation is not None and again.loss == pytest.approx(run.validation.loss, abs=1e-6)


def test_lora_learns_ten_times_as_fast_unless_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = train(tiny("bert"), tmp_path / "r", lora=ws.LoRA(), learning_rate=None, warmup=0.0, epochs=0.25)
    assert steps(run)[0]["learning_rate"] == pytest.approx(0.4 / 32)


def test_a_target_that_is_no_linear_module_is_refused(tiny: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ws.UsageError) as caught:
        train(tiny("bert"), tmp_path / "r", lora=ws.LoRA(targets=("query", "q_proj")))
    assert (caught.value.code, caught.value.value) == ("lora-targets", "q_proj")
    assert "dense, key, query, value" in caught.value.fix and not (tmp_path / "r").exists()


def test_without_peft_the_extra_is_named(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ws.load(tiny("bert")).model
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ws.UsageError) as caught:
        add_lora(model, ws.LoRA(), seed=0)
    assert caught.value.code == "extra-missing" and "warmstart[lora]" in caught.value.fix
