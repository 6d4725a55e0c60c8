"""The pack, and attention over it: each way to compute it gives what the others give, those of a GPU included."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from warmstart.engine import packed_attention
from warmstart.engine.packed_attention import _by_runs, _Call, _is_complete, _padded_block, _varlen, _varlen_can
from warmstart.engine.packing import Pack

masks = st.integers(1, 6).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=6)
)
steady = settings(max_examples=30, deadline=None, derandomize=True)


# --- the pack ---------------------------------------------------------------------------------------------------------


@steady
@given(masks)
def test_packing_and_unpacking(rows: list[list[bool]]) -> None:
    """Every kept position once, each row's in their order and together; back where they were, zeros between them."""
    mask = torch.tensor(rows)
    pack = Pack.of(mask.long())
    values = torch.arange(1, mask.numel() + 1).view(*mask.shape, 1).expand(*mask.shape, 3)
    packed = pack.pack(values)
    assert packed.shape == (1, int(mask.sum()), 3)
    assert torch.equal(pack.unpack(packed), values * mask[..., None])
    of_row = (packed[0, :, 0] - 1) // mask.shape[1]
    assert sorted(packed[0, :, 0].tolist()) == (values[..., 0][mask]).tolist()
    lengths = mask.sum(1)
    start = 0
    for number, length in pack.runs:
        for _ in range(number):
            row = of_row[start]
            assert int(lengths[row]) == length
            assert packed[0, start : start + length, 0].tolist() == values[row, :, 0][mask[row]].tolist()
            start += length
    assert start == int(mask.sum())
    assert [length for _, length in pack.runs] == sorted({int(n) for n in lengths if n}, reverse=True)


@steady
@given(masks.filter(lambda rows: any(any(row) for row in rows)))
def test_starts_firsts_and_boundaries_agree(rows: list[list[bool]]) -> None:
    pack = Pack.of(torch.tensor(rows))
    boundaries = pack.boundaries()
    assert boundaries.dtype == torch.int32
    assert boundaries[:-1].tolist() == pack.firsts().tolist()
    assert int(boundaries[-1]) == len(pack.index)
    assert boundaries.diff().tolist() == [length for number, length in pack.runs for _ in range(number)]
    assert [start for start, _, _ in pack.blocks()] == sorted({start for start, _, _ in pack.blocks()})
    firsts = pack.of_firsts()
    assert firsts.index.tolist() == pack.index[pack.firsts()].tolist()
    assert sum(number for number, _ in firsts.runs) == len(firsts.index)
    marks = firsts.unpack(torch.ones(1, len(firsts.index), 1))[..., 0]
    assert marks.sum(1).tolist() == [float(any(row)) for row in rows]


def test_what_is_the_same_for_all_rows_may_come_once() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert Pack.of(mask).pack(torch.arange(3)[None]).tolist() == [[0, 1, 2, 0, 1]]


def test_gradients_go_through_both_ways() -> None:
    pack = Pack.of(torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]]))
    values = torch.randn(3, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: pack.unpack(pack.pack(v) ** 2), values)


# --- attention over it ------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """What transformers' SDPA reads of a layer."""

    def __init__(self, groups: int, causal: bool) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = causal


KINDS = {
    "bidirectional": {},
    "bidirectional, window": {"window": 3},
    "causal": {"causal": True},
    "causal, window": {"causal": True, "window": 3},
    "bidirectional, grouped": {"groups": 2},
    "causal, grouped": {"groups": 2, "causal": True},
    "causal, window, grouped": {"groups": 2, "causal": True, "window": 3},
}


def call_of(groups: int = 1, causal: bool = False, window: int | None = None, dropout: float = 0.0) -> _Call:
    return _Call(Layer(groups, causal), dropout, 0.3, window, causal)


def states(pack: Pack, groups: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(0)
    heads = (4, 4 // groups, 4 // groups)
    drawn = [torch.randn(1, h, len(pack.index), 8, generator=chance).to(dtype).requires_grad_() for h in heads]
    return drawn[0], drawn[1], drawn[2]


def by_rows(call: _Call, query: Tensor, key: Tensor, value: Tensor, pack: Pack) -> Tensor:
    """The definition: a softmax over what each token of a row sees in that row."""
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    outputs = []
    starts = pack.boundaries().tolist()
    for start, end in pairwise(starts):
        q, k, v = (tensor[0, :, start:end] for tensor in (query, key, value))
        place = torch.arange(end - start)
        distance = place[:, None] - place
        seen = torch.ones_like(distance, dtype=torch.bool)
        if call.window is not None:
            seen &= distance.abs() < call.window
        if call.causal:
            seen &= distance >= 0
        scores = (q @ k.transpose(1, 2) * call.scaling).masked_fill(~seen, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)[None]


PADDINGS = {
    "right": [[1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0], [1] * 7, [1, 1, 0, 0, 0, 0, 0]],
    "left": [[0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1], [1] * 7, [0, 0, 0, 0, 0, 1, 1]],
    "an empty row": [[1, 1, 1, 0, 0, 0, 0], [0] * 7, [1] * 7, [1, 0, 0, 0, 0, 0, 0]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("way", [_by_runs, _padded_block], ids=["runs", "block"])
def test_every_way_is_attention_within_rows(kind: str, padding: str, way: Any) -> None:
    """Gradients too: a padding token of the block that sees nothing must not make them NaN."""
    pack = Pack.of(torch.tensor(PADDINGS[padding]))
    call = call_of(**KINDS[kind])
    inputs = states(pack, KINDS[kind].get("groups", 1))
    wanted = by_rows(call, *inputs, pack)
    found = way(call, *inputs, pack)
    assert found.shape == (1, len(pack.index), 4, 8)
    assert (found - wanted).abs().max() <= 1e-5
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((wanted * weights).sum(), inputs),
        strict=True,
    ):
        assert (one - other).abs().max() <= 1e-5


def test_dropout_on_runs_is_a_mean_of_the_undropped() -> None:
    pack = Pack.of(torch.ones(3, 5))
    inputs = tuple(tensor.detach() for tensor in states(pack, 1))
    wanted = _by_runs(call_of(), *inputs, pack)
    torch.manual_seed(0)
    draws = torch.stack([_by_runs(call_of(dropout=0.4), *inputs, pack) for _ in range(400)])
    error = draws.std(0) / 20
    assert (error > 0).all()
    assert ((draws.mean(0) - wanted).abs() / error).max() < 5


# --- torch's kernel of a GPU, with a stand-in -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_arguments(stand_in: list[dict[str, Any]], kind: str) -> None:
    pack = Pack.of(torch.tensor(PADDINGS["an empty row"]))
    call = call_of(**KINDS[kind])
    inputs = states(pack, KINDS[kind].get("groups", 1), torch.bfloat16)
    found = _varlen(call, *inputs, pack)
    wanted = by_rows(call, *(tensor.float() for tensor in inputs), pack)
    assert (found - wanted).abs().max() <= 0.02  # bfloat16
    [given] = stand_in
    assert given["query"].shape == (11, 4, 8)
    assert given["key"].shape == given["value"].shape == (11, 4 // KINDS[kind].get("groups", 1), 8)
    assert given["cu_seq_q"].tolist() == given["cu_seq_k"].tolist() == [0, 7, 10, 11]
    assert given["cu_seq_q"].dtype == torch.int32
    assert given["max_q"] == given["max_k"] == 7
    assert given["query"].stride(-1) == 1


def test_a_cpu_does_not_ask_for_the_kernel(stand_in: list[dict[str, Any]]) -> None:
    pack = Pack.of(torch.tensor(PADDINGS["right"]))
    query, key, value = states(pack, 1, torch.bfloat16)
    assert not _varlen_can(call_of(), query)
    packed_attention.packed_attention(Layer(1, False), query, key, value, None, pack=pack)
    assert stand_in == []


@pytest.mark.parametrize(
    ("dtype", "width", "dropout", "capability", "can"),
    [
        (torch.bfloat16, 64, 0.0, (8, 0), True),
        (torch.float16, 256, 0.0, (9, 0), True),
        (torch.float32, 64, 0.0, (9, 0), False),
        (torch.float16, 60, 0.0, (9, 0), False),
        (torch.float16, 264, 0.0, (9, 0), False),
        (torch.float16, 64, 0.1, (9, 0), False),
        (torch.float16, 64, 0.0, (7, 5), False),
    ],
)
def test_when_the_kernel_can(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    width: int,
    dropout: float,
    capability: tuple[int, int],
    can: bool,
) -> None:
    """On a GPU, of which this machine needs to have none."""

    class OnGPU:
        def __init__(self) -> None:
            self.dtype, self.shape = dtype, (1, 4, 11, width)
            self.device = torch.device("cuda", 0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _varlen_can(call_of(dropout=dropout), OnGPU()) is can  # type: ignore[arg-type]


def test_a_kernel_that_lacks_what_we_ask_is_not_used() -> None:
    """Those of torch 2.10 and 2.11."""

    def of_2_10(query: Tensor, key: Tensor, *, is_causal: bool = False) -> None: ...

    def of_2_11(query: Tensor, key: Tensor, *, scale: float, window_size: tuple[int, int]) -> None: ...

    assert not _is_complete(of_2_10)  # type: ignore[arg-type]
    assert not _is_complete(of_2_11)  # type: ignore[arg-type]
    from torch.nn.attention.varlen import varlen_attn

    assert _is_complete(varlen_attn)
