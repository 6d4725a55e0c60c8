"""The torch runtime: the model stays the person's own, whatever runs beside it; devices by name."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import warmstart as ws
from warmstart.batching import Shapes
from warmstart.engine import frozen, products, run_batch, torch_runtime
from warmstart.engine.devices import available, resolve
from warmstart.engine.runtime_torch import TorchRuntime, to_tensors
from warmstart.errors import UsageError, WarmstartError
from warmstart.features import Batch, Feature
from warmstart.rows import Row
from warmstart.tasks import as_dict


@dataclass(frozen=True)
class Plain:
    """A stand-in for a task whose outputs are those of the model."""

    def infer(self, model: Any, batch: Batch) -> dict[str, Any]:
        outputs: dict[str, Any] = model(batch.inputs["x"])
        return outputs


class Net(torch.nn.Module):
    """Dropout that would be seen, a part that a person has frozen in eval mode, and a hook for tests."""

    def __init__(self, during: Callable[[Net], None] = lambda net: None) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.Dropout(0.5)
        self.during = during

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.during(self)
        return {"y": self.frozen(self.drop(x)).half(), "n": x.sum(1).long(), "grad": torch.tensor([x.requires_grad])}


class Graph:
    """A runtime of another kind."""

    device, shapes = "cpu", Shapes(512)

    def run(self, batch: Batch) -> dict[str, np.ndarray]:
        raise AssertionError("nothing is run")


def batch(value: float = 1.0) -> Batch:
    features = (Feature(0, 0, {}), Feature(1, 0, {}))
    return Batch(features, {"x": np.full((2, 50), value, np.float32)}, {"t": np.zeros(2, np.int64)})


def runtime(net: torch.nn.Module) -> TorchRuntime:
    return TorchRuntime(net, Plain(), "cpu")  # type: ignore[arg-type]


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_outputs_are_plain_arrays_without_gradient() -> None:
    out = runtime(Net()).run(batch())
    assert all(type(array) is np.ndarray for array in out.values())
    assert out["y"].dtype == np.float32  # half precision is the model's business
    assert out["n"].dtype == np.int64
    assert (out["y"] == 1).all()
    assert not out["grad"].any()
    assert torch.is_grad_enabled()


def test_to_tensors_keeps_everything_else() -> None:
    given = batch()
    tensors = to_tensors(given, "cpu")
    assert tensors.features is given.features
    assert isinstance(tensors.inputs["x"], torch.Tensor)
    assert tensors.targets["t"].dtype == torch.int64
    assert isinstance(given.inputs["x"], np.ndarray)


# --- modes ------------------------------------------------------------------------------------------------------------


def test_each_module_gets_its_mode_back() -> None:
    def no_module_trains(net: Net) -> None:
        assert not any(module.training for module in net.modules())

    net = Net(no_module_trains)
    net.train()
    net.frozen.eval()
    assert (runtime(net).run(batch())["y"] == 1).all()
    assert (net.training, net.drop.training, net.frozen.training) == (True, True, False)
    net.eval()
    runtime(net).run(batch())
    assert not any(module.training for module in net.modules())
    net.drop.train()  # a part that trains in a model that does not
    assert (runtime(net).run(batch())["y"] == 1).all()
    assert (net.training, net.drop.training) == (False, True)


def test_a_frozen_runtime_answers_alike_and_leaves_the_persons_model_alone(
    tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: True)
    pipe = ws.load(tiny("bert"), device="cpu")
    live = pipe.runtime
    assert isinstance(live, TorchRuntime)
    pipe.model.train()
    modes = [module.training for module in pipe.model.modules()]
    fixed = frozen(live)
    assert isinstance(fixed, TorchRuntime) and fixed.model is not live.model
    texts = ["good", "a dull and tired plot", "warm"]
    features = list(pipe.task.encode([Row({"text": text}) for text in texts]))
    for one, other in zip(*(run_batch(pipe.task, each, features) for each in (live, fixed)), strict=True):
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)
    assert [module.training for module in pipe.model.modules()] == modes
    assert not any(module.training for module in fixed.model.modules())
    monkeypatch.setattr(products, "_onednn_is_quicker", lambda: False)
    assert frozen(live) is live  # where nothing is gained
    assert frozen(graph := Graph()) is graph  # a runtime that knows of no such thing


def test_modes_come_back_after_an_error() -> None:
    def fail(net: Net) -> None:
        raise ZeroDivisionError

    net = Net(fail).train()
    with pytest.raises(ZeroDivisionError):
        runtime(net).run(batch())
    assert all(module.training for module in net.modules())


def test_a_thread_that_ends_does_not_turn_dropout_on_for_another() -> None:
    """The first to leave restored train mode under the second: its predictions became noise."""
    inside, leave = threading.Event(), threading.Event()

    def wait(net: Net) -> None:
        if threading.current_thread().name == "slow":
            inside.set()
            assert leave.wait(5)

    net = Net(wait).train()
    ours = runtime(net)
    found: dict[str, Any] = {}

    def run(name: str) -> None:
        found[name] = ours.run(batch())["y"]

    slow = threading.Thread(target=run, args=("slow",), name="slow")
    slow.start()
    assert inside.wait(5)
    run("quick")
    assert not net.training  # the slow one still computes
    leave.set()
    slow.join(5)
    assert (found["slow"] == 1).all()
    assert (found["quick"] == 1).all()
    assert net.training


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_threads_predict_what_one_predicts(tiny: Callable[..., Path], family: str) -> None:
    """Also with a model that a person has left in train mode."""
    texts = [f"a good film {'and warm ' * (i % 40)}{i}" for i in range(40)]
    pipe = ws.load(tiny(family), device="cpu")
    wanted = [as_dict(prediction) for prediction in pipe(texts)]
    pipe.model.train()
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append([as_dict(prediction) for prediction in pipe(list(texts))]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [wanted] * 6
    assert all(module.training for module in pipe.model.modules())


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["cuda", "mps", "cpu"],
)
def test_running_out_of_memory_is_a_memory_error(error: RuntimeError) -> None:
    def fail(net: Net) -> None:
        raise error

    with pytest.raises(MemoryError):
        runtime(Net(fail)).run(batch())


def test_a_real_allocation_that_fails_on_this_cpu() -> None:
    with pytest.raises(MemoryError):
        runtime(Net(lambda net: torch.empty(10**15) and None)).run(batch())


def test_other_runtime_errors_stay_what_they_are() -> None:
    def fail(net: Net) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        runtime(Net(fail)).run(batch())


def test_a_pipeline_splits_batches_that_do_not_fit(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    texts = ["a good film", "bad", "warm words " * 5] * 4
    wanted = [as_dict(prediction)["label"] for prediction in pipe(texts)]
    sizes: list[int] = []

    def refuse(module: Any, arguments: Any, options: Mapping[str, torch.Tensor]) -> None:
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = pipe.model.register_forward_pre_hook(refuse, with_kwargs=True)
    limit = 2
    assert [prediction.label for prediction in pipe(texts)] == wanted
    assert max(sizes) == 12
    limit = 0
    with pytest.raises(WarmstartError) as caught:
        pipe("a good film")
    assert (caught.value.code, caught.value.exit_code) == ("out-of-memory", 1)
    handle.remove()


def test_an_answer_that_is_no_number_is_no_answer(tiny: Callable[..., Path]) -> None:
    pipe = ws.load(tiny("bert"), device="cpu")
    assert pipe("a good film").label  # the healthy twin
    with torch.no_grad():
        pipe.model.classifier.bias[0] = float("nan")
    with pytest.raises(WarmstartError) as caught:
        pipe(["a", "b"])
    assert (caught.value.code, caught.value.where.row) == ("output-not-a-number", 0)


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices_of_this_machine() -> None:
    assert available()[-1] == "cpu"
    assert resolve("cpu") == "cpu"
    assert resolve("auto") == available()[0]


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cpu\n", "auto ", "tpu"])
def test_a_name_that_is_no_device(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name)
    assert caught.value.code == "device-unknown"
    assert "cuda" in caught.value.fix


@pytest.mark.parametrize("name", ["cuda:99", "cuda:99999999999999999999"])
def test_a_device_that_is_not_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for asked in (name, "cuda", "mps"):
        with pytest.raises(UsageError) as caught:
            resolve(asked)
        assert caught.value.code == "device-unavailable"
        assert caught.value.fix == "use one of: auto, cpu"


def test_devices_are_ordered_best_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert available()[:2] == ["cuda:0", "cuda:1"]
    assert (resolve("auto"), resolve("cuda"), resolve("cuda:1")) == ("cuda:0", "cuda:0", "cuda:1")


def test_torch_runtime_moves_the_model_and_refuses_first() -> None:
    net = Net()
    made = torch_runtime(net, Plain(), device="cpu")  # type: ignore[arg-type]
    assert (made.device, made.model) == ("cpu", net)  # type: ignore[attr-defined]
    with pytest.raises(UsageError):
        torch_runtime(net, Plain(), device="gpu")  # type: ignore[arg-type]


def test_importing_the_engine_imports_no_torch() -> None:
    code = "import sys, warmstart.engine; print('torch' in sys.modules)"
    start = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert time.perf_counter() - start < 20
