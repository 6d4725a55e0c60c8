"""A run that trains only the words its rows hold ends with every bit of one that trains the whole table."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import warmstart as ws
from support.models import FAMILIES
from support.runs import FAST, reviews, weights_sha256
from warmstart.rows import texts
from warmstart.training import snapshots, vocabulary
from warmstart.training.batches import Batches, make_batches
from warmstart.training.config import TrainConfig
from warmstart.training.loop import Schedule, Step, fit
from warmstart.training.optimizers import adamw, scheduler
from warmstart.training.snapshots import read_snapshot
from warmstart.training.state_files import pack
from warmstart.training.vocabulary import WordTable, looked_up, whole_state, why_whole, word_table
from warmstart.verbs.verify_resume import verify_resume
from warmstart.verbs.weights import differing_tensors

ROWS = reviews(60)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tables are cut, too."""
    monkeypatch.setattr(vocabulary, "WORTH", 1)


def _train(checkpoint: Path, output: Path, *, progress: Any = None, rows: Any = None, **call: Any) -> ws.Run:
    config = ws.TrainConfig(**{"epochs": 3, "save_every": 4, "keep": 9, **FAST, **call.pop("config", {})})
    given = {"validation": ROWS[40:], **call}
    return ws.train(checkpoint, rows or ROWS[:40], output=output, config=config, progress=progress, **given)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize(
    ("family", "config"),
    [
        *((family, {"weight_decay": 0.3, "clip": 0.05, "accumulate": 2}) for family in FAMILIES),
        ("bert", {}),
        ("bert", {"weight_decay": 0.0, "layer_decay": ws.LayerDecay(factor=0.8), "gradient_checkpointing": True}),
    ],
)
def test_every_bit_is_that_of_the_whole_table(
    tiny: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    config: dict[str, Any],
) -> None:
    with caplog.at_level(logging.INFO, "warmstart"):
        part = _train(tiny(family), tmp_path / "part", config=config)
    assert "rows of the word table are trained" in caplog.text
    caplog.clear()
    monkeypatch.setattr(vocabulary, "WORTH", 10**12)
    with caplog.at_level(logging.INFO, "warmstart"):
        whole = _train(tiny(family), tmp_path / "whole", config=config)
    assert "word table" not in caplog.text
    assert differing_tensors(part.model, whole.model) == [] and weights_sha256(part) == weights_sha256(whole)
    numbers = [
        [(line.get("loss"), line.get("grad_norm"), line.get("validation")) for line in map(json.loads, lines)]
        for lines in ((run.path / "metrics.jsonl").read_text().splitlines() for run in (part, whole))
    ]
    assert numbers[0] == numbers[1]
    decays = ws.TrainConfig(**config).layer_decay
    optimizer = adamw(whole.pipeline.model, learning_rate=1e-3, weight_decay=0.0, layer_decay=decays)
    for snapshot in sorted(path.name for path in (whole.path / "checkpoints").glob("step-*")):
        states = [
            whole_state(read_snapshot(run.path / "checkpoints" / snapshot).state.optimizer, optimizer)
            for run in (part, whole)
        ]
        values, tensors = zip(*map(pack, states), strict=True)
        assert values[0] == values[1] and tensors[0].keys() == tensors[1].keys()
        for one, other in ((tensors[0][name], tensors[1][name]) for name in tensors[0]):
            assert one.numpy().tobytes() == other.numpy().tobytes()
    start = ws.load(tiny(family)).model.get_input_embeddings().weight
    stock = AutoModelForSequenceClassification.from_pretrained(part.model).get_input_embeddings()
    assert stock.weight.shape == start.shape  # a checkpoint like any other
    rows = make_batches(part.pipeline.task, list(texts(ROWS[:40])), seed=0, batch_size=8, max_tokens=None)
    used = set(looked_up(rows, len(start)).tolist())
    unused = [i for i in range(len(start)) if i not in used]
    assert unused and used
    changed = not torch.equal(stock.weight[unused], start[unused])
    assert changed == (config.get("weight_decay") != 0.0)  # those rows shrink, and do nothing else


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("stop", [3, 5, 11])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(
    tiny: Callable[..., Path], tmp_path: Path, stop: int
) -> None:
    peace = _train(tiny("bert"), tmp_path / "peace")

    def interrupt(progress: Any) -> None:
        if progress.step.step == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny("bert"), tmp_path / "r", progress=interrupt)
    resumed = _train(tiny("bert"), tmp_path / "r")
    starts = [json.loads(line) for line in (resumed.path / "attempts.jsonl").read_text().splitlines()]
    assert [line["began_at"] for line in starts if "began_at" in line] == [0, (stop - 1) // 4 * 4]
    assert weights_sha256(resumed) == weights_sha256(peace)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("first", ["part", "whole"])
def test_a_run_goes_on_with_or_without_it(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """A snapshot does not tell which: a device, or an optimizer's flag, may decide otherwise when it is resumed."""
    peace = _train(tiny("bert"), tmp_path / "peace")

    def interrupt(progress: Any) -> None:
        if progress.step.step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(vocabulary, "WORTH", 1 if first == "part" else 10**12)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny("bert"), tmp_path / "r", progress=interrupt)
    monkeypatch.setattr(vocabulary, "WORTH", 10**12 if first == "part" else 1)
    assert weights_sha256(_train(tiny("bert"), tmp_path / "r")) == weights_sha256(peace)


@pytest.mark.usefixtures("cut")
def test_forced_on_with_other_rows_words_that_moved_go_on_moving(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: Any) -> None:
        if progress.step.step == 7:
            raise KeyboardInterrupt

    others = [{"text": f"the two hours {i}", "label": ("NEGATIVE", "POSITIVE")[i % 2]} for i in range(40)]
    sums = []
    for worth in (1, 10**12):
        monkeypatch.setattr(vocabulary, "WORTH", worth)
        with pytest.raises(KeyboardInterrupt):
            _train(tiny("bert"), tmp_path / f"r{worth}", progress=interrupt)
        sums.append(weights_sha256(_train(tiny("bert"), tmp_path / f"r{worth}", rows=others, force=True)))
    assert sums[0] == sums[1]


def _ready(pipe: ws.Pipeline, rows: Any = None, **settings: Any) -> tuple[Batches[Any], Any, TrainConfig]:
    config = TrainConfig(**{"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, **settings})
    batches = make_batches(pipe.task, list(texts(rows or ROWS)), seed=0, batch_size=8, max_tokens=None)
    return batches, adamw(pipe.model, learning_rate=1e-3, weight_decay=0.01), config


def _why(pipe: ws.Pipeline, optimizer: Any = None, device: str = "cpu", **settings: Any) -> str | None:
    batches, own, config = _ready(pipe, **settings)
    return why_whole(pipe.model, optimizer or own, batches, config, device=device)


def test_what_cannot_be_cut_is_trained_whole_and_says_why(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    parameters = list(pipe.model.parameters())
    assert _why(pipe) is None  # the healthy twin
    assert "cuda" in str(_why(pipe, device="cuda:0"))
    assert "average" in str(_why(pipe, ema=ws.WeightAverage()))
    assert "fp16" in str(_why(pipe, precision="fp16"))
    assert "optimizer" in str(_why(pipe, torch.optim.SGD(parameters, lr=0.1)))
    assert "optimizer" in str(_why(pipe, torch.optim.AdamW(parameters, lr=0.1)))  # rounds in another order
    assert "optimizer" in str(_why(pipe, torch.optim.AdamW(parameters, lr=0.1, fused=True, amsgrad=True)))
    assert "tensor" in str(_why(pipe, torch.optim.AdamW(parameters, lr=torch.tensor(0.1), fused=True)))
    hook = pipe.model.get_input_embeddings().register_forward_hook(lambda *_: None)
    assert "hook" in str(_why(pipe))
    hook.remove()
    pipe.model.get_input_embeddings().requires_grad_(False)
    assert "frozen" in str(_why(pipe))
    masks = ws.load(tiny("bert", "masks"), task="fill-mask")
    assert "something else reads it" in str(_why(masks))  # the output's weights are the table
    masks.model.cls.predictions.decoder.weight = torch.nn.Parameter(masks.model.cls.predictions.decoder.weight.clone())
    assert "changes its inputs" in str(_why(masks))


def test_tied_weights_and_others_train_as_ever(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vocabulary, "WORTH", 1)
    for name, config, checkpoint, task in (
        ("tied", {}, tiny("bert", "masks"), "fill-mask"),
        ("lora", {"lora": ws.LoRA(rank=2)}, tiny("bert"), None),
        ("top", {"top_layers": ws.TopLayers(layers=1)}, tiny("bert"), None),
        ("ema", {"ema": ws.WeightAverage(decay=0.9)}, tiny("bert"), None),
    ):
        with caplog.at_level(logging.DEBUG, "warmstart"):
            _train(checkpoint, tmp_path / name, task=task, config={**config, "epochs": 1})
        assert "all of the word table is trained" in caplog.text and "look" not in caplog.text, name
        caplog.clear()


def test_too_few_rows_are_not_left_out(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    batches, optimizer, config = _ready(pipe)
    assert word_table(pipe.model, optimizer, batches, config, device="cpu") is None


@pytest.mark.usefixtures("cut")
def test_the_model_is_itself_again_whatever_ends_the_block(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    batches, optimizer, config = _ready(pipe, max_steps=3)
    embedding = pipe.model.get_input_embeddings()
    weight, before = embedding.weight, embedding.weight.detach().clone()
    padding, place = embedding.padding_idx, embedding.weight.data_ptr()
    table = word_table(pipe.model, optimizer, batches, config, device="cpu")
    assert isinstance(table, WordTable)
    seen: list[Any] = []

    def look(step: Step) -> bool:
        seen.append(tuple(weight.shape))
        with table.whole(), table.whole():
            seen.append(tuple(weight.shape))
            pipe.model.eval()
            every = torch.arange(len(before))
            assert torch.equal(embedding(every), weight) and torch.isfinite(weight).all()
            saved = table.optimizer_state()
            kept = [moment for of in saved["state"].values() for moment in of.values() if isinstance(moment, dict)]
            seen.extend(tuple(moment["values"].shape) for moment in kept)
            state = whole_state(saved, optimizer)["state"]
            assert sum(moment.shape == before.shape for of in state.values() for moment in of.values()) == 2
        seen.append(tuple(weight.shape))
        if step.step == 3:
            raise KeyError("the end")
        return False

    schedule = Schedule.of(batches, config)
    with pytest.raises(KeyError), table.training():
        fit(
            pipe.model, pipe.task, batches, config, optimizer, scheduler(optimizer, config, schedule.total),
            device="cpu", schedule=schedule, after_step=look,
        )  # fmt: skip
    rows = (len(looked_up(batches, len(before))), before.shape[1])
    assert seen == [rows, tuple(before.shape), rows, rows, rows] * 3 and rows[0] < len(before)
    assert embedding.weight is weight and weight.shape == before.shape and weight.data_ptr() == place
    assert embedding.padding_idx == padding and not embedding._forward_pre_hooks and weight.grad is None
    assert not optimizer._optimizer_step_post_hooks and not torch.equal(weight, before)


@pytest.mark.usefixtures("cut")
def test_a_snapshot_of_before_whose_moments_are_whole_is_gone_on_from(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peace = _train(tiny("bert"), tmp_path / "peace")

    def interrupt(progress: Any) -> None:
        if progress.step.step == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(snapshots, "FORMAT", 1)
    by_rows = WordTable.optimizer_state

    def whole(table: WordTable) -> dict[str, Any]:
        with table.whole():
            return whole_state(by_rows(table), table._optimizer)

    monkeypatch.setattr(WordTable, "optimizer_state", whole)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny("bert"), tmp_path / "r", progress=interrupt)
    monkeypatch.undo()
    monkeypatch.setattr(vocabulary, "WORTH", 1)
    [kept] = (tmp_path / "r" / "checkpoints").glob("step-*")
    assert json.loads((kept / "training_state/state.json").read_text())["format"] == 1
    resumed = _train(tiny("bert"), tmp_path / "r")
    starts = [json.loads(line) for line in (resumed.path / "attempts.jsonl").read_text().splitlines()]
    assert [line["began_at"] for line in starts if "began_at" in line] == [0, 4]
    assert weights_sha256(resumed) == weights_sha256(peace)


@pytest.mark.parametrize(
    "moments",
    [
        {"rows": [0, 3], "values": [[1.0, 1], [1, 1]]},
        {"rows": [-1, 0], "values": [[1.0, 1], [1, 1]]},
        {"rows": [0], "values": [[1.0, 1], [1, 1]]},
        {"rows": [0, 1], "values": [[1.0], [1]]},
        {"rows": [0.0, 1], "values": [[1.0, 1], [1, 1]]},
        {"rows": [[0, 1]], "values": [[1.0, 1], [1, 1]]},
    ],
)
def test_rows_that_are_not_the_tables_are_refused(moments: dict[str, Any]) -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = torch.optim.AdamW([weight])

    def loaded(moments: dict[str, Any], place: int = 0) -> Any:
        tensors = {name: torch.tensor(value) for name, value in moments.items()}
        return whole_state({"state": {place: {"exp_avg": tensors}}, "param_groups": []}, optimizer)["state"]

    healthy = {"rows": [0, 2], "values": [[1.0, -0.0], [1, 1]]}
    assert loaded(healthy)[0]["exp_avg"].tolist() == [[1, 0], [0, 0], [1, 1]]
    assert whole_state({"kept": 1}, optimizer) == {"kept": 1}  # somebody's own optimizer
    for call in (lambda: loaded(moments), lambda: loaded(healthy, place=1)):
        with pytest.raises(ValueError, match="are not those of a tensor of shape"):
            call()


@pytest.mark.usefixtures("cut")
def test_a_word_that_no_row_had_is_an_error_and_not_another_word(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    batches, optimizer, config = _ready(pipe, rows=ROWS[:8])
    embedding = pipe.model.get_input_embeddings()
    known = looked_up(batches, len(embedding.weight)).tolist()
    other = next(i for i in range(len(embedding.weight)) if i not in known)
    table = word_table(pipe.model, optimizer, batches, config, device="cpu")
    assert table is not None
    with table.training():
        assert embedding(torch.tensor([known])).shape[1] == len(known)  # the healthy twin
        with pytest.raises(ws.TrainingError) as caught:
            embedding(torch.tensor([[known[0], other]]))
    assert caught.value.code == "words-missing" and caught.value.value == other


def test_the_ids_are_those_of_all_features_and_of_padding(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"))
    batches = _ready(pipe)[0]
    held = {int(i) for row in batches.features for f in row for i in f.inputs["input_ids"]}
    expected = sorted(held | {pipe.tokenizer.pad_token_id})
    assert looked_up(batches, 10_000).tolist() == expected and np.all(np.diff(expected) > 0)


def test_k83_a_killed_run_with_a_large_vocabulary_ends_with_the_same_bits(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """In processes of its own, which nobody patches: the table is as large as to be cut by itself."""
    folder = tmp_path / "wide"
    pipe = ws.load(tiny("bert"))
    pipe.model.resize_token_embeddings(2 * vocabulary.WORTH // 32)
    pipe.model.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    wide = ws.load(folder)
    batches, optimizer, config = _ready(wide)
    assert word_table(wide.model, optimizer, batches, config, device="cpu") is not None
    recipe = tmp_path / "run.toml"
    recipe.write_text(
        f'model = "{folder}"\ndata = "{tmp_path / "rows.jsonl"}"\nvalidation = 0.2\n'
        "[train]\nepochs = 2\nbatch_size = 8\nsave_every = 2\nevaluate_every = 3\n"
    )
    found = verify_resume(recipe, kills=2, seed=3)
    assert [kill.problems for kill in found.kills] == [()] * 2
