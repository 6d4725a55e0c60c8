"""One of BERT's layers on a pack, without gradients: as few passes over memory as torch's operations allow.

Products are those of the library that is quicker on this processor (`products.py`), GELU is computed where its product
is, and the last layer of a head that reads the first token alone computes these tokens only. The number of tokens is
rounded up where the library would compile anew for each (`products.rounded_rows`); what the added rows hold is cut off.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.engine.layer_weights import Shape, Weights
from warmstart.engine.products import affine, affine_gelu, rounded_rows


def infer(x: Tensor, firsts: Tensor | None, shape: Shape, w: Weights) -> Tensor:
    """(T, H) → (T, H). `firsts`: the positions for which alone the output is wanted, (B,) → (B, H)."""
    wanted, x = (x if firsts is None else firsts).shape[0], _rounded(x)
    rest = x if firsts is None else _rounded(x.index_select(0, firsts))
    query = affine(rest, w.wq, w.bq)
    context = _attend(query, affine(x, w.wk, w.bk), affine(x, w.wv, w.bv), shape, only_firsts=firsts is not None)
    middle = affine(context, w.wo, w.bo).add_(rest)
    middle = torch.layer_norm(middle, middle.shape[-1:], w.g1, w.b1, shape.eps[0])
    final = affine(affine_gelu(middle, w.wi, w.bi), w.wf, w.bf).add_(middle)
    return torch.layer_norm(final[:wanted], final.shape[-1:], w.g2, w.b2, shape.eps[1])


def _rounded(x: Tensor) -> Tensor:
    """`x` with rows of zeros behind it, as many as its products want."""
    more = rounded_rows(x) - x.shape[0]
    return F.pad(x, (0, 0, 0, more)) if more else x


def _attend(query: Tensor, key: Tensor, value: Tensor, shape: Shape, *, only_firsts: bool) -> Tensor:
    """Attention run by run: keys and values (T, H), and queries of all tokens, or of each row's first (B, H)."""
    context = torch.empty_like(query)
    end = row = 0
    for start, rows, length in shape.blocks:
        asked = slice(row, row + rows) if only_firsts else slice(start, start + rows * length)
        q, k, v = (
            states.view(rows, -1, states.shape[1] // shape.width, shape.width).transpose(1, 2)
            for states in (query[asked], key[start : start + rows * length], value[start : start + rows * length])
        )  # (rows, heads, 1 or L, d)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=shape.scaling)
        context[asked].view(rows, -1, *mixed.shape[1::2]).copy_(mixed.transpose(1, 2))
        row, end = row + rows, asked.stop
    context[end:].zero_()  # memory that nobody wrote may hold what is slow to compute with
    return context
