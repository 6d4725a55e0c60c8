"""State dicts as JSON and safetensors: every bit comes back, and no pickle is involved."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from warmstart.errors import CheckpointError
from warmstart.training.state_files import pack, read_tensors, read_values, unpack, write_tensors

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.text(max_size=4) | st.integers(0, 9) | st.sampled_from(["$tensor", "$items", "$tuple"])
trees = st.recursive(
    plain | st.builds(lambda numbers: torch.tensor(numbers, dtype=torch.float32), st.lists(st.floats(width=32))),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def test_names_that_meet_in_one_path_stay_apart() -> None:
    tree = {"a": {"b": torch.tensor(1.0)}, "a.b": torch.tensor(2.0), 1: torch.tensor(3), "1": torch.tensor(4)}
    values, tensors = pack(tree)
    assert len(tensors) == 4 and _same(unpack(json.loads(json.dumps(values)), tensors), tree)


@pytest.mark.parametrize("odd", [{(1, 2): 3}, {"a": torch.eye(2).to_sparse()}, [torch.eye(2, dtype=torch.complex128)]])
def test_what_no_file_holds_is_refused_and_not_changed(odd: Any) -> None:
    with pytest.raises(TypeError):
        pack(odd)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and _bits(one) == _bits(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def _bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(trees)
def test_every_tree_comes_back_through_json(tree: Any) -> None:
    values, tensors = pack(tree)
    assert _same(unpack(json.loads(json.dumps(values, allow_nan=False)), tensors), tree)


def test_what_is_no_plain_value_is_refused_by_its_place() -> None:
    with pytest.raises(TypeError, match=r"state\.0\.step is of type set"):
        pack({"state": {0: {"step": {1}}}})


TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "strided": torch.arange(12, dtype=torch.float64).reshape(3, 4).T,
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "bf16": torch.randn(5).bfloat16(),
    "flags": torch.tensor([True, False]),
    "nan": torch.tensor([float("nan"), -0.0, 1e-45]),
    "whole": torch.tensor([2**40], dtype=torch.int64),
}


def test_the_file_is_safetensors_hashed_while_written(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    digest = write_tensors(path, TENSORS)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    for read in (read_tensors(path), load_file(path)):  # the library's own reader agrees
        assert read.keys() == TENSORS.keys()
        assert all(_same(read[name], TENSORS[name].contiguous()) for name in TENSORS)


def test_f89_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_tensors(tmp_path / "whole", TENSORS)
    real, sizes = io.FileIO.write, []

    class Half(io.FileIO):
        def write(self, data: Any) -> int:
            sizes.append(len(data))
            return real(self, data[: (len(data) + 1) // 2])

    monkeypatch.setattr(io, "open", lambda path, mode, *rest: Half(path, mode))
    digest = write_tensors(tmp_path / "parts", TENSORS)
    monkeypatch.undo()
    assert len(sizes) > 2 * (len(TENSORS) + 1)
    assert digest == whole and (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_tensors_come_back_in_memory_of_their_own(tmp_path: Path) -> None:
    """A view of the mapped file lies where the file says, and sums in another order than one that torch placed."""
    write_tensors(tmp_path / "a", {"odd": torch.zeros(3), "next": torch.ones(64)})
    read = read_tensors(tmp_path / "a")
    (tmp_path / "a").unlink()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())
    assert torch.equal(read["next"], torch.ones(64))


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adafactor", "RMSprop"])
def test_an_optimizer_goes_on_as_if_it_had_not_been_saved(kind: str, tmp_path: Path) -> None:
    def ready() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        more = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
        return model, getattr(torch.optim, kind)(model.parameters(), lr=1e-2, **more)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        model(torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
        optimizer.step()

    model, optimizer = ready()
    for seed in range(3):
        step(model, optimizer, seed)
    values, tensors = pack(optimizer.state_dict())
    write_tensors(tmp_path / "state", tensors)
    text = json.dumps(values, allow_nan=False)
    again, resumed = ready()
    again.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    resumed.load_state_dict(unpack(json.loads(text), read_tensors(tmp_path / "state")))
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(again, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_file_that_cannot_be_read_now_is_not_said_to_be_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_tensors(path, {"a": torch.ones(3)})
    real = Path.open
    for failure in (errno.EMFILE, errno.ENOMEM, errno.EACCES, errno.ESTALE, errno.EIO, errno.ENOENT):

        def opened(self: Path, *arguments: Any, failure: int = failure, **named: Any) -> Any:
            if self == path:
                raise OSError(failure, os.strerror(failure), str(path))
            return real(self, *arguments, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opened)
            for read in (read_tensors, read_values):
                with pytest.raises((OSError, CheckpointError)) as caught:
                    read(path)
                assert isinstance(caught.value, CheckpointError) == (failure == errno.ENOENT)
    full = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes.")
    for error in (MemoryError(), full):

        def clone(self: torch.Tensor, error: Exception = error) -> Any:
            raise error

        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(torch.Tensor, "clone", clone)
            read_tensors(path)
    assert torch.equal(read_tensors(path)["a"], torch.ones(3))  # the healthy twin


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x80\x00\x00\x00\x00\x00\x00\x00{"])
def test_c1_damaged_files_are_errors_with_their_place(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(damage)
    for read in (read_tensors, read_values):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert caught.value.code == "state-unreadable" and str(path) in str(caught.value.where)
