"""`ws.Checkpointer`: a person's own loop, interrupted and begun again, ends with the bits of one that was not."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

import warmstart as ws

TOTAL = 12


class Loop:
    """A loop that draws from every generator there is: noise, masks, order and dropout."""

    def __init__(self, folder: Path, **given: Any) -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler: Any = StepLR(self.optimizer, 3, 0.5)
        self.own: dict[str, Any] = {
            "torch": torch.Generator().manual_seed(1),
            "philox": np.random.Generator(np.random.Philox(1)),
            "pcg": np.random.default_rng(1),
            "python": random.Random(1),
        }
        self.given = {"every": 3, "generators": self.own, **given}
        self.folder = folder

    def run(self, until: int = TOTAL) -> int:
        """Train up to a step, as if the process were killed there; returns the step it began at."""
        with ws.Checkpointer(
            self.folder, model=self.model, optimizer=self.optimizer, scheduler=self.scheduler, **self.given
        ) as ckpt:
            start = ckpt.resume()
            for step in range(start, until):
                self.step()
                ckpt.step_done(step)
        return start

    def step(self) -> None:
        draws = [random.random(), np.random.rand(), self.own["python"].random()]
        draws += [self.own["philox"].random(), self.own["pcg"].integers(0, 9), np.random.randn()]
        x = torch.randn(6, 4, generator=self.own["torch"]) * sum(draws)
        loss = (self.model(x) - torch.rand(6, 1)).square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.scheduler.step(loss.item()) if isinstance(self.scheduler, ReduceLROnPlateau) else self.scheduler.step()

    def weights(self) -> list[bytes]:
        return [tensor.numpy().tobytes() for tensor in self.model.state_dict().values()]


@pytest.fixture(autouse=True)
def global_generators() -> Iterator[None]:
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng([]):
        yield
    np.random.set_state(states[0])
    random.setstate(states[1])


@pytest.mark.parametrize("stops", [(4,), (1, 7), (3, 5, 11), (2, 3, 4)])
def test_an_interrupted_loop_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, stops: tuple[int, ...]) -> None:
    peace = Loop(tmp_path / "peace")
    assert peace.run() == 0
    for stop in stops:
        Loop(tmp_path / "killed").run(stop)
    last = Loop(tmp_path / "killed")
    assert last.run() == stops[-1] // 3 * 3
    assert last.weights() == peace.weights()
    starts = [json.loads(line) for line in (tmp_path / "killed" / "attempts.jsonl").read_text().splitlines()]
    assert [line["began_at"] for line in starts] == [0, *(stop // 3 * 3 for stop in stops)]
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.pkl"))


def test_without_what_it_restores_the_bits_are_others(tmp_path: Path) -> None:
    """The test above can fail: one generator that is left out is enough."""
    peace = Loop(tmp_path / "peace")
    peace.run()
    for until in (4, TOTAL):
        loop = Loop(tmp_path / "killed", generators={})
        loop.run(until)
    assert loop.weights() != peace.weights()


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, amsgrad=True),
    "rmsprop": lambda params: torch.optim.RMSprop(params, lr=0.01, centered=True, momentum=0.5),
    "adafactor": lambda params: torch.optim.Adafactor(params, lr=0.05),
    "nadam": lambda params: torch.optim.NAdam(params, lr=0.05),
    "rprop": lambda params: torch.optim.Rprop(params, lr=0.05),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, 0.2, total_steps=TOTAL),
    "plateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, threshold=0.0),
    "chain": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 4),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
        ],
        [4],
    ),
}


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [*((name, "one-cycle") for name in OPTIMIZERS if name not in ("adagrad", "adafactor", "rprop")),
     ("adagrad", "plateau"), ("adafactor", "chain"), ("rprop", "plateau"), ("sgd", "chain")],
)  # fmt: skip
def test_any_optimizer_and_any_scheduler(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    def loop(name: str) -> Loop:
        made = Loop(tmp_path / name)
        made.optimizer = OPTIMIZERS[optimizer](made.model.parameters())
        made.scheduler = SCHEDULERS[scheduler](made.optimizer)
        return made

    peace = loop("peace")
    peace.run()
    loop("killed").run(5)
    last = loop("killed")
    assert last.run() == 3
    assert last.weights() == peace.weights()
    assert last.scheduler.state_dict() == peace.scheduler.state_dict()


def test_an_optimizer_that_needs_a_closure_goes_on_where_it_was(tmp_path: Path) -> None:
    """LBFGS: its history of directions and gradients, with a scheduler that needs a metric."""

    class Closing(Loop):
        def step(self) -> None:
            x, y = torch.randn(6, 4), torch.rand(6, 1)
            losses: list[float] = []

            def closure() -> Any:
                self.optimizer.zero_grad()
                loss = (self.model.get_submodule("0")(x).square().mean(1, keepdim=True) - y).square().mean()
                loss.backward()
                losses.append(loss.item())
                return loss

            self.optimizer.step(closure)
            self.scheduler.step(losses[0])

    def loop(name: str) -> Closing:
        made = Closing(tmp_path / name)
        parameters = list(made.model.get_submodule("0").parameters())
        made.optimizer = torch.optim.LBFGS(
            parameters, lr=0.3, max_iter=3, history_size=4, line_search_fn="strong_wolfe"
        )
        made.scheduler = ReduceLROnPlateau(made.optimizer, factor=0.5, patience=0, threshold=0.0)
        return made

    peace = loop("peace")
    peace.run()
    rates = {group["lr"] for group in peace.optimizer.param_groups}
    assert rates != {0.3} and len(peace.optimizer.state_dict()["state"][0]["old_dirs"]) == 4
    loop("killed").run(5)
    last = loop("killed")
    assert last.run() == 3
    assert last.weights() == peace.weights()
    assert last.scheduler.state_dict() == peace.scheduler.state_dict()
    history = [made.optimizer.state_dict()["state"][0] for made in (last, peace)]
    assert history[0].keys() == history[1].keys()
    for name, value in history[0].items():
        torch.testing.assert_close(value, history[1][name], rtol=0, atol=0, msg=name)


def test_a_gradient_scaler_and_others_go_on_where_they_were(tmp_path: Path) -> None:
    def loop(name: str, until: int) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)
        with ws.Checkpointer(
            tmp_path / name, model=model, optimizer=optimizer, scaler=scaler, others={"average": average}, every=1
        ) as ckpt:
            for step in range(ckpt.resume(), until):
                scaler.scale(model(torch.randn(2, 3)).square().mean()).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                average.update_parameters(model)
                ckpt.step_done(step)
        return scaler.state_dict(), [p.detach().tolist() for p in [*model.parameters(), *average.parameters()]]

    peace = loop("peace", 9)
    loop("killed", 5)
    assert loop("killed", 9) == peace and peace[0]["scale"] == 2.0 * 2**4


def test_tied_weights_and_low_precision(tmp_path: Path) -> None:
    def tied() -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).bfloat16()
        model[1].weight = model[0].weight
        return model

    model = tied()
    with ws.Checkpointer(tmp_path, model=model, optimizer=torch.optim.SGD(model.parameters())) as ckpt:
        ckpt.resume()
        ckpt.save(0)
    again = tied()
    with ws.Checkpointer(tmp_path, model=again, optimizer=torch.optim.SGD(again.parameters())) as ckpt:
        assert ckpt.resume() == 1
    assert again[1].weight is again[0].weight  # type: ignore[index]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_damaged_snapshot_is_set_aside_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peace = Loop(tmp_path / "peace")
    peace.run()
    Loop(tmp_path / "run").run(10)
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000006", "step-000009"]  # `keep`
    state = folder / "step-000009" / "state.safetensors"
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with caplog.at_level(logging.WARNING, "warmstart"):
        last = Loop(tmp_path / "run")
        assert last.run() == 6
    assert last.weights() == peace.weights()
    assert "state.safetensors is not the file that was saved" in caplog.text
    assert "not the file" in (folder / "step-000009.rejected" / "REASON.txt").read_text()
    starts = [json.loads(line) for line in (tmp_path / "run" / "attempts.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in starts[-1]["set_aside"]] == ["step-000009"]


def test_a_snapshot_that_cannot_be_read_now_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from warmstart.training import checkpointer

    Loop(tmp_path).run(10)
    before = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    for error in (MemoryError(), OSError(24, "Too many open files")):

        def fail(path: Path, error: Exception = error) -> Any:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(checkpointer, "read_tensors", fail)
            assert _code(Loop(tmp_path).run, ws.TrainingError) == "snapshot-unread"
        if isinstance(error, MemoryError):  # it was read, and the parts could not take it over
            loop = Loop(tmp_path)
            with monkeypatch.context() as patch:
                patch.setattr(loop.optimizer, "load_state_dict", fail)
                assert _code(loop.run, ws.TrainingError) == "snapshot-unread"
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == before
    assert Loop(tmp_path).run() == 9  # the healthy twin


def _code(action: Callable[[], Any], kind: type[ws.WarmstartError]) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert len(caught.value.fix) > 10
    return caught.value.code


def test_another_model_optimizer_or_generator_is_refused(tmp_path: Path) -> None:
    Loop(tmp_path).run(4)
    wider = Loop(tmp_path)
    wider.model[0] = torch.nn.Linear(5, 8)
    assert _code(wider.run, ws.CheckpointError) == "state-unfit"
    parts = Loop(tmp_path)
    parts.optimizer = torch.optim.SGD([{"params": [p]} for p in parts.model.parameters()], lr=0.1)
    assert _code(parts.run, ws.CheckpointError) == "state-unfit"
    assert _code(Loop(tmp_path, scaler=torch.amp.GradScaler("cpu")).run, ws.CheckpointError) == "state-unfit"
    assert _code(Loop(tmp_path, generators={}).run, ws.CheckpointError) == "state-unfit"
    assert Loop(tmp_path).run() == 3  # the healthy twin: nothing was set aside


def test_r80_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    Loop(tmp_path, settings={"seed": 0, "rows": "abc"}).run(4)
    with pytest.raises(ws.UsageError, match="seed: 0 → 1") as caught:
        Loop(tmp_path, settings={"seed": 1, "rows": "abc"}).run()
    assert caught.value.code == "resume-differs" and caught.value.value == "seed"
    assert str(caught.value.where).startswith(str(tmp_path))
    assert Loop(tmp_path, settings={"seed": 0, "rows": "abc"}).run() == 3


def test_mistakes_in_the_call_are_told(tmp_path: Path) -> None:
    loop = Loop(tmp_path / "a")
    ckpt = ws.Checkpointer(tmp_path / "a", model=loop.model, optimizer=loop.optimizer)
    assert _code(lambda: ckpt.save(0), ws.UsageError) == "not-resumed"
    assert _code(lambda: ckpt.step_done(0), ws.UsageError) == "not-resumed"
    ckpt.resume()
    ckpt.step_done(0)
    ckpt.save(0)
    assert _code(lambda: ckpt.step_done(0), ws.UsageError) == "step-repeated"
    ckpt.step_done(1)
    ckpt.close()
    for name, value in (("every", 0), ("keep", 0), ("every", 1.5), ("keep", True)):
        assert (
            _code(lambda n=name, v=value: Loop(tmp_path / "b", **{n: v}).run(), ws.UsageError) == "checkpointer-value"
        )
    assert _code(Loop(tmp_path / "b", generators={"x": 3}).run, ws.UsageError) == "generator-unknown"
    assert _code(Loop(tmp_path / "b", settings={"x": {1, 2}}).run, ws.UsageError) == "state-unsavable"

    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"odd": {1, 2}}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            raise AssertionError

    assert _code(Loop(tmp_path / "b", others={"odd": Odd()}).run, ws.UsageError) == "state-unsavable"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "provenance.json").write_text("{}")
    assert _code(Loop(tmp_path / "c").run, ws.UsageError) == "folder-taken"
    (tmp_path / "d").write_text("a file")
    assert _code(Loop(tmp_path / "d").run, ws.WarmstartError) == "run-unwritable"


@pytest.mark.bounded(60)  # two processes start
def test_x93_one_process_at_a_time(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    ckpt = ws.Checkpointer(tmp_path, model=loop.model, optimizer=loop.optimizer)
    ckpt.resume()
    code = (
        "import sys, torch, warmstart as ws; m = torch.nn.Linear(1, 1)\n"
        "try: ws.Checkpointer(sys.argv[1], model=m, optimizer=torch.optim.SGD(m.parameters())).resume()\n"
        "except ws.UsageError as error: print(error.code, error.value)"
    )

    def other() -> str:
        run = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout

    assert other() == f"run-locked {os.getpid()}\n"
    ckpt.close()
    assert other() == ""


def test_a_step_that_the_disk_refuses_is_said_and_a_save_that_it_refuses_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from warmstart.training import checkpointer

    loop = Loop(tmp_path)
    with ws.Checkpointer(tmp_path, model=loop.model, optimizer=loop.optimizer, every=1) as ckpt:
        ckpt.resume()
        assert ckpt.step_done(0)

        def full(*_: Any) -> str:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpointer, "write_tensors", full)
        with caplog.at_level(logging.WARNING, "warmstart"):
            assert not ckpt.step_done(1)
        assert "No space left" in caplog.text and "goes on" in caplog.text
        assert _code(lambda: ckpt.save(1), ws.CheckpointError) == "save-failed"
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]
        monkeypatch.undo()
        assert ckpt.step_done(2)


def test_by_the_clock_where_every_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(tmp_path, every=None)
    loop.run()
    assert list((tmp_path / "checkpoints").iterdir()) == []  # less than 30 seconds
    shutil.rmtree(tmp_path)
    clock = ws.Checkpointer(tmp_path, model=loop.model, optimizer=loop.optimizer)
    clock.resume()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() + 1000.0)
    assert clock.step_done(0)
    clock.close()
