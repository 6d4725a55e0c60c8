"""What the runtimes of exported graphs share: threads, batches in parts, and the names a graph must have."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from warmstart.errors import CheckpointError

# Padded tokens a graph runs at once: the activations stay in a CPU's cache, and a batch has little padding of its own.
# A MiniLM in int8 made 373 texts/s so, and 346 with 2,048; with 4,096 in fp32 a third less.
GRAPH_TOKENS = 512

# (name, axes); an axis is None where it depends on the batch.
Outputs = Sequence[tuple[str, Sequence[int | None]]]


def threads() -> int:
    """How many threads a graph may use: OMP_NUM_THREADS as torch reads it; 0, the runtime's own choice, without it."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


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


def unreadable(graph: Path, runtime: str, error: Exception) -> CheckpointError:
    """The error for a graph that its runtime does not take."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return CheckpointError(
        "graph-unusable",
        f"{runtime} cannot use the graph: {lines[-1][:200] if lines else type(error).__name__}",
        where=str(graph),
        fix="copy the folder again, or export the checkpoint again with the versions installed here",
    )
