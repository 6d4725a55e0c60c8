"""What the runtimes of exported graphs share: threads, what they read, and the names a graph must have."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from warmstart.batching import Shapes
from warmstart.errors import CheckpointError, UsageError, is_out_of_memory
from warmstart.features import Array, Batch

# Padded tokens a graph runs at once: the activations stay in a CPU's cache, and a batch has little padding of its own,
# or its attention has, where the graph drops the rest. Measured on graphs that do not:
# A MiniLM in fp32 made a third less with 4,096; in int8, whose activations are smaller, 445 texts/s with 768 tokens,
# 436 with 512 and 430 with 1,024.
_TOKENS = {"int8": 768, "fp32": 512}
# What a call costs beside its tokens, in tokens, by precision (docs/log.md).
_CALL_TOKENS = {"int8": 48, "fp32": 16}

MASK = "attention_mask"
# What a graph that drops padding is given beside the task's inputs: int64 (T,) and (B, S), as `pack_inputs` has them.
PACK_INPUTS = ("pack_index", "pack_places")

# (name, axes); an axis is None where it depends on the batch.
Outputs = Sequence[tuple[str, Sequence[int | None]]]


def shapes_of(precision: str, *, limit: int, rounded: bool, packed: bool) -> Shapes:
    """The batches at which a graph is quickest. `limit`: the most tokens it takes; `packed`: it drops its padding."""
    call_tokens = None if packed else _CALL_TOKENS[precision]
    return Shapes(_TOKENS[precision], call_tokens=call_tokens, rounded=rounded, limit=limit)


def threads() -> int:
    """How many threads a graph may use: OMP_NUM_THREADS as torch reads it; 0, the runtime's own choice, without it."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def pack_inputs(mask: Array, *, rounded: bool = True) -> dict[str, Array]:
    """Which positions of a padded batch a graph is to compute, by its mask (B, S), whose rows begin with a token.

    `PACK_INPUTS`: the positions (T,) in the flattened batch, and for each position where it stands among these (B, S);
    for padding, where some token does. `rounded`: T is rounded up, to all positions at most, for a graph prepares its
    steps for each size anew; the positions beyond are the first one again, which nobody reads.

    >>> [array.tolist() for array in pack_inputs(np.array([[1, 0, 0, 0], [1, 1, 1, 0]])).values()]
    [[0, 4, 5, 6, 0, 0, 0, 0], [[0, 0, 0, 0], [1, 2, 3, 3]]]
    """
    if not mask[:, 0].all():
        raise ValueError("a row begins with padding, whose place a graph that drops padding does not compute")
    kept = np.flatnonzero(mask)
    step = 1 if not rounded else 8 if len(kept) < 128 else 16 if len(kept) < 256 else 32
    index = np.zeros(min(-(-len(kept) // step) * step, mask.size), dtype=np.int64)
    index[: len(kept)] = kept
    places = np.cumsum(mask != 0, dtype=np.int64).reshape(mask.shape) - 1
    return dict(zip(PACK_INPUTS, (index, places), strict=True))


@runtime_checkable
class Packs(Protocol):
    """A runtime whose graph may drop padding itself."""

    @property
    def packed(self) -> bool: ...


def positions(runtime: object, batch: Batch) -> int:
    """How many token positions the layers of a runtime's graph compute of a batch."""
    mask = batch.inputs[MASK]
    return len(pack_inputs(mask)[PACK_INPUTS[0]]) if isinstance(runtime, Packs) and runtime.packed else mask.size


def input_names(names: Sequence[str], *, packed: bool) -> tuple[str, ...]:
    """Of all inputs of a graph, the task's `names` first."""
    return (*names, *PACK_INPUTS) if packed else tuple(names)


def graph_inputs(
    arrays: Mapping[str, Array], names: Sequence[str], *, packed: bool, rounded: bool = True
) -> dict[str, Array]:
    """What a graph reads of a batch's arrays: those of the task's `names`, and `PACK_INPUTS` where it is `packed`."""
    inputs = {name: np.ascontiguousarray(arrays[name]) for name in names}
    return {**inputs, **pack_inputs(arrays[MASK], rounded=rounded)} if packed else inputs


def inputs_of(batch: Batch, names: Sequence[str], *, packed: bool) -> dict[str, Array]:
    """`graph_inputs` of a batch. Raises UsageError `export-has-no-loss` for a batch with targets.

    A task that is judged by its losses finds the targets in the batch; a graph was traced without them.
    """
    if batch.targets:
        raise UsageError(
            "export-has-no-loss",
            "this task is judged by losses under its model, and an exported graph gives predictions only",
            value=sorted(batch.targets),
            fix="evaluate the checkpoint that this one was exported from",
        )
    return graph_inputs(batch.inputs, names, packed=packed)


def check_names(
    graph: Path,
    *,
    inputs: Sequence[str],
    outputs: Outputs,
    found_inputs: Iterable[str],
    found_outputs: Mapping[str, Sequence[int | None]],
) -> None:
    """Raises CheckpointError `export-record-mismatch` where the graph is not the one its record tells of."""
    wrong = None
    if sorted(found_inputs) != sorted(inputs):
        wrong = f"the graph reads {sorted(found_inputs)}, the record says {sorted(inputs)}"
    elif sorted(found_outputs) != sorted(name for name, _ in outputs):
        wrong = f"the graph gives {sorted(found_outputs)}, the record says {sorted(name for name, _ in outputs)}"
    else:
        for name, axes in outputs:
            real = list(found_outputs[name])
            if len(real) != len(axes) or any(a != b for a, b in zip(real, axes, strict=True) if None not in (a, b)):
                wrong = f"the graph's {name} is of shape {real}, the record says {list(axes)}"
    if wrong is not None:
        raise CheckpointError(
            "export-record-mismatch",
            wrong,
            where=str(graph),
            fix="the folder's files are of different exports: export the checkpoint again",
        )


def unreadable(graph: Path, runtime: str, error: Exception) -> Exception:
    """The error for a graph that its runtime does not take: CheckpointError `graph-unusable`, or MemoryError."""
    if is_out_of_memory(error):
        return MemoryError(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CheckpointError(
        "graph-unusable",
        f"{runtime} cannot use the graph: {lines[-1][:200] if lines else type(error).__name__}",
        where=str(graph),
        fix="copy the folder again, or export the checkpoint again with the versions installed here",
    )
