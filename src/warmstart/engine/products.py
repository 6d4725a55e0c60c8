"""Matrix products on the library that is quicker on this processor.

torch multiplies float32 by MKL, which is made for Intel's processors. On AMD's with AVX-512 oneDNN, which torch carries
too, was 1.13 to 1.17 times as fast for the products of a training step, and up to 1.5 times for those of large batches
in inference (docs/log.md). Which one it is is a function of the processor, never of a clock: the same machine gives the
same bits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, in), (out, in) and (out,) → (T, out), for plain tensors on a CPU and without autograd."""
    if _on_onednn(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


def affine_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU, by the error function, of what `affine` gives."""
    if _on_onednn(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], "none")
        return product
    return F.gelu(affine(x, weight, bias))


def laid_out(weight: Tensor) -> Tensor:
    """A copy of a weight (out, in) in oneDNN's own layout, which `affine` and `affine_gelu` read where `is_prepackable`
    says so, and no other operation reads."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
    return copy


def is_prepackable(x: Tensor) -> bool:
    """Whether `affine` multiplies `x` by weights in oneDNN's own layout. Given others, it brings them into that layout
    at every call: 3 of the 10 ms that MiniLM's products take for a text of 28 tokens, 10 of 190 for 32 texts."""
    return x.device.type == "cpu" and _on_onednn(x)


def rounded_rows(x: Tensor) -> int:
    """With how many rows a product of `x` (T, in) is best computed: T below 32, else less than a sixteenth more.

    oneDNN compiles a product for every T it meets (0.4 to 1 ms, and up to 1.7 MB that it keeps), and every pack has a
    T of its own. With 16 sizes between a power of two and the next, each is soon one it has met.
    """
    rows = x.shape[0]
    step = 2 ** max(0, rows.bit_length() - 5) if _on_onednn(x) else 1
    return -(-rows // step) * step


def _on_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.backends.mkldnn.enabled and _onednn_is_quicker()


@lru_cache(maxsize=1)
def _onednn_is_quicker() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")[:4096]
    except OSError:
        return False
