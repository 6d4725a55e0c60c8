"""Tiny models run quickest on one thread; a stand-in for torch's kernel of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.engine import packed_attention


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The definition of `varlen_attn`'s arguments, in plain torch; and what it was called with."""
    calls: list[dict[str, Any]] = []

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        calls.append(locals() | {"calls": None})
        assert enable_gqa or query.shape[1] == key.shape[1]
        left, right = window_size
        outputs = []
        bounds = cu_seq_q.tolist()
        for start, end in pairwise(bounds):
            q, k, v = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
            behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
            seen = ((left < 0) | (behind <= left)) & ((right < 0) | (behind >= -right))
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa)
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs)

    monkeypatch.setattr(packed_attention, "varlen_attn", varlen_attn)
    yield calls
