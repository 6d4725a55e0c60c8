"""Training one of BERT's layers on a pack: forward and backward written out, as one node of the graph.

Autograd over the stock layer keeps tensors that nobody needs, passes over memory for every small step, and draws each
dropout mask number by number. Here there is one product for queries, keys and values, attention is batched products on
runs of equal length, dropout and residual are one pass, a mask takes 16 bits a number, and the last layer of a head
that reads the first token alone computes queries, and everything behind them, for these tokens only.

A backward pass that is itself to be differentiated goes through plain operations (`_plainly`). Figures: docs/log.md and
benchmarks/training.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warmstart.engine.layer_weights import Shape, Weights
from warmstart.engine.products import affine

_aten = torch.ops.aten


class TrainedLayer(torch.autograd.Function):
    """T tokens of width H. `firsts`: the positions for which the output is wanted, None for all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, firsts: Tensor | None, shape: Shape, *weights: Tensor) -> Tensor:
        w = Weights(*weights)
        fused, bias = _fused(w, shape.scaling, firsts)
        projected = affine(x, fused, bias)
        if firsts is None:
            rest, query, keys = x, None, projected
        else:
            rest = x.index_select(0, firsts)
            query, keys = affine(rest, w.wq * shape.scaling, w.bq * shape.scaling), projected
        context, saved = _attend(query, keys, shape)
        residual = affine(context, w.wo, w.bo)
        kept_1 = _kept(residual.shape, shape.drop[1], x)
        residual = _add(rest, residual, kept_1)
        middle, mean_1, rstd_1 = torch.native_layer_norm(residual, residual.shape[-1:], w.g1, w.b1, shape.eps[0])
        inner = affine(middle, w.wi, w.bi)
        active = F.gelu(inner)
        final = affine(active, w.wf, w.bf)
        kept_2 = _kept(final.shape, shape.drop[2], x)
        final = _add(middle, final, kept_2)
        output, mean_2, rstd_2 = torch.native_layer_norm(final, final.shape[-1:], w.g2, w.b2, shape.eps[1])
        ctx.shape, ctx.runs = shape, len(saved)
        ctx.save_for_backward(
            x, firsts, *weights, fused, context, kept_1, residual, mean_1, rstd_1, middle, inner, active, kept_2, final,
            mean_2, rstd_2, *saved,
        )  # fmt: skip
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, firsts, *others = ctx.saved_tensors
        w, others = Weights(*others[:16]), others[16:]
        fused, context, kept_1, residual, mean_1, rstd_1, middle, inner, active, kept_2, final, mean_2, rstd_2 = others[
            :13
        ]
        shape, saved = ctx.shape, others[13:]
        if torch.is_grad_enabled():
            return _plain_gradients(ctx.needs_input_grad[0], gradient, x, firsts, shape, w, saved, kept_1, kept_2)
        norm_backward = _aten.native_layer_norm_backward
        back, d_g2, d_b2 = norm_backward(gradient, final, final.shape[-1:], mean_2, rstd_2, w.g2, w.b2, [True] * 3)
        dropped = back if kept_2 is None else back * kept_2
        d_wf, d_bf = dropped.t() @ active, dropped.sum(0)
        d_inner = affine(dropped, w.wf.t(), None)
        _aten.gelu_backward.grad_input(d_inner, inner, grad_input=d_inner)
        d_wi, d_bi = d_inner.t() @ middle, d_inner.sum(0)
        back = back.add_(affine(d_inner, w.wi.t(), None))
        back, d_g1, d_b1 = norm_backward(back, residual, residual.shape[-1:], mean_1, rstd_1, w.g1, w.b1, [True] * 3)
        dropped = back if kept_1 is None else back * kept_1
        d_wo, d_bo = dropped.t() @ context, dropped.sum(0)
        d_query, d_keys = _attend_backward(
            affine(dropped, w.wo.t(), None), saved, shape, x.shape[0], only_firsts=firsts is not None
        )
        d_fused, d_bias = d_keys.t() @ x, d_keys.sum(0)
        if firsts is None:
            d_x = back.add_(affine(d_keys, fused.t(), None)) if ctx.needs_input_grad[0] else None
            d_wq, d_wk, d_wv = d_fused.chunk(3)
            d_bq, d_bk, d_bv = d_bias.chunk(3)
            d_wq, d_bq = d_wq * shape.scaling, d_bq * shape.scaling
        else:
            d_query = d_query * shape.scaling
            d_wq, d_bq = d_query.t() @ x.index_select(0, firsts), d_query.sum(0)
            (d_wk, d_wv), (d_bk, d_bv) = d_fused.chunk(2), d_bias.chunk(2)
            d_x = affine(d_keys, fused.t(), None) if ctx.needs_input_grad[0] else None
            if d_x is not None:
                d_x.index_add_(0, firsts, back.add_(affine(d_query, w.wq.t(), None)))
        return (
            d_x, None, None, d_wq, d_bq, d_wk, d_bk, d_wv, d_bv, d_wo, d_bo, d_g1, d_b1, d_wi, d_bi, d_wf, d_bf, d_g2,
            d_b2,
        )  # fmt: skip


def _fused(w: Weights, scaling: float, firsts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The matrices of queries (scaled), keys and values as one; without the queries' where few tokens have one."""
    queries = ((w.wq * scaling,), (w.bq * scaling,)) if firsts is None else ((), ())
    return torch.cat([*queries[0], w.wk, w.wv]), torch.cat([*queries[1], w.bk, w.bv])


def _kept(shape: Sequence[int], drop: float, like: Tensor) -> Tensor | None:
    """A dropout mask, its scale in it, from torch's generator; None where nothing is dropped.

    Sixteen bits a number: the share is right to 1/65536, and the scale is that of the share that is drawn.
    """
    dropped = round(drop * 65536)
    if not dropped:
        return None
    count = math.prod(shape)
    # Of a plain `random_()` the highest bit is always 0.
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    mask = torch.empty(count, dtype=like.dtype)
    torch.ge(words.view(torch.int16)[:count], dropped - 32768, out=mask)
    return mask.mul_(65536 / (65536 - dropped)).view(shape)


def _add(residual: Tensor, states: Tensor, kept: Tensor | None) -> Tensor:
    return states.add_(residual) if kept is None else torch.addcmul(residual, states, kept, out=states)


def _apart(block: Tensor, rows: int, width: int, parts: int) -> list[Tensor]:
    """(rows·L, parts·heads·width) → for each part (rows·heads, L, width)."""
    states = block.view(rows, block.shape[0] // rows, parts, -1, width).permute(2, 0, 3, 1, 4)
    return list(states.reshape(parts, -1, states.shape[3], width).unbind())


def _together(parts: Tensor, rows: int, into: Tensor) -> None:
    """The inverse of `_apart`: (parts, rows·heads, L, width) into (rows·L, parts·heads·width)."""
    count, _, length, width = parts.shape
    into.view(rows, length, count, -1, width).copy_(parts.view(count, rows, -1, length, width).permute(1, 3, 0, 2, 4))


def _attend(query: Tensor | None, projected: Tensor, shape: Shape) -> tuple[Tensor, list[Tensor | None]]:
    """Attention run by run. `query` (B, H) and keys and values (T, 2H), or without it all three (T, 3H).

    Returns the mixed values and, of each run, queries, keys, values, weights and their dropout mask.
    """
    parts = 3 if query is None else 2
    total, width = projected.shape[0], projected.shape[1] // parts
    heads = width // shape.width
    context = projected.new_empty(total if query is None else query.shape[0], width)
    sizes = [rows * heads * length * (length if query is None else 1) for _, rows, length in shape.blocks]
    kept = _kept((sum(sizes),), shape.drop[0], projected)
    masks = [None] * len(sizes) if kept is None else kept.split(sizes)
    saved: list[Tensor | None] = []
    row = 0
    for (start, rows, length), mask in zip(shape.blocks, masks, strict=True):
        block = _apart(projected[start : start + rows * length], rows, shape.width, parts)
        place = slice(start, start + rows * length)
        if query is not None:
            place = slice(row, row + rows)
            block = [*_apart(query[place], rows, shape.width, 1), *block]
        q, k, v = block
        weights = torch.bmm(q, k.transpose(1, 2)).softmax(-1)
        mask = None if mask is None else mask.view_as(weights)
        mixed = torch.bmm(weights if mask is None else weights * mask, v)
        _together(mixed[None], rows, context[place])
        saved += [q, k, v, weights, mask]
        row += rows
    return context, saved


def _attend_backward(
    gradient: Tensor, saved: Sequence[Tensor], shape: Shape, total: int, *, only_firsts: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of what `_attend` was given: of `query` (empty without it), and of what was projected."""
    parts, width = (2, gradient.shape[1]) if only_firsts else (3, gradient.shape[1])
    d_query = gradient.new_empty(gradient.shape[0] if only_firsts else 0, width)
    d_projected = gradient.new_empty(total, parts * width)
    row = 0
    for i, (start, rows, length) in enumerate(shape.blocks):
        q, k, v, weights, mask = saved[5 * i : 5 * i + 5]
        place = slice(row, row + rows) if only_firsts else slice(start, start + rows * length)
        [d_mixed] = _apart(gradient[place], rows, shape.width, 1)
        made = gradient.new_empty(parts, *k.shape)
        torch.bmm((weights if mask is None else weights * mask).transpose(1, 2), d_mixed, out=made[-1])
        back = torch.bmm(d_mixed, v.transpose(1, 2))
        back = _aten._softmax_backward_data(back if mask is None else back.mul_(mask), weights, -1, weights.dtype)
        torch.bmm(back.transpose(1, 2), q, out=made[-2])
        if only_firsts:
            _together(torch.bmm(back, k)[None], rows, d_query[place])
        else:
            torch.bmm(back, k, out=made[0])
        _together(made, rows, d_projected[start : start + rows * length])
        row += rows
    return d_query, d_projected


def _plain_gradients(
    of_x: bool, gradient: Tensor, x: Tensor, firsts: Tensor | None, shape: Shape, w: Weights, saved: Sequence[Tensor],
    kept_1: Tensor | None, kept_2: Tensor | None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The same gradients as something that can be differentiated again."""
    inputs = [x, *w] if of_x else list(w)
    output = _plainly(x, firsts, shape, w, saved[4::5], kept_1, kept_2)
    found = torch.autograd.grad(output, inputs, gradient, create_graph=True)
    return (found[0] if of_x else None, None, None, *found[int(of_x) :])


def _plainly(
    x: Tensor, firsts: Tensor | None, shape: Shape, w: Weights, masks: Sequence[Tensor | None],
    kept_1: Tensor | None, kept_2: Tensor | None,
) -> Tensor:  # fmt: skip
    """The layer in plain operations, with the dropout masks that were drawn."""
    fused, bias = _fused(w, shape.scaling, firsts)
    projected = F.linear(x, fused, bias)
    rest = x if firsts is None else x.index_select(0, firsts)
    query = None if firsts is None else F.linear(rest, w.wq, w.bq) * shape.scaling
    mixed, row = [], 0
    for (start, rows, length), mask in zip(shape.blocks, masks, strict=True):
        block = _apart(projected[start : start + rows * length], rows, shape.width, 3 if query is None else 2)
        if query is not None:
            block = [*_apart(query[row : row + rows], rows, shape.width, 1), *block]
        q, k, v = block
        weights = (q @ k.transpose(1, 2)).softmax(-1)
        context = (weights if mask is None else weights * mask) @ v
        mixed.append(context.unflatten(0, (rows, -1)).transpose(1, 2).flatten(0, 1).flatten(1))
        row += rows
    attended = F.linear(torch.cat(mixed), w.wo, w.bo)
    middle = F.layer_norm(
        rest + (attended if kept_1 is None else attended * kept_1), rest.shape[-1:], w.g1, w.b1, shape.eps[0]
    )
    final = F.linear(F.gelu(F.linear(middle, w.wi, w.bi)), w.wf, w.bf)
    return F.layer_norm(
        middle + (final if kept_2 is None else final * kept_2), middle.shape[-1:], w.g2, w.b2, shape.eps[1]
    )
