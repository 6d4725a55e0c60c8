"""What a task computes with its model, as one graph: from a PyTorch model to an exported program.

Not the model alone is traced but `task.infer`, so that a runtime of another kind gives the outputs that the task's
`decode` reads, by their names. Both axes of the batch stay free.
"""

from __future__ import annotations

import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch

from warmstart.batching import collate
from warmstart.engine.first_token import leave_unread_out
from warmstart.engine.graph_packing import Packing, pack_inside
from warmstart.engine.graph_runtime import MASK, PACK_INPUTS, input_names, pack_inputs
from warmstart.engine.packing import GraphPack
from warmstart.engine.runtime_torch import to_tensors
from warmstart.engine.unpad import pad
from warmstart.errors import UsageError
from warmstart.features import Batch, Feature
from warmstart.tasks import Task

_TALKERS = ("torch", "torch.__trace", "torch.export", "torch.onnx", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class Traced:
    """A task's graph. `outputs`: names and axes, None where an axis depends on the batch. `packed`: its
    layers compute no padding outside of attention."""

    program: Any  # torch.export.ExportedProgram, its inputs in the order of `names`
    inputs: tuple[str, ...]  # the task's
    outputs: tuple[tuple[str, tuple[int | None, ...]], ...]
    packed: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Of all inputs."""
        return input_names(self.inputs, packed=self.packed)


def trace(model: torch.nn.Module, task: Task, features: Sequence[Feature], *, packs: bool) -> Traced:
    """The graph of `task.infer` with a copy of `model`, on the CPU and in float32; `features` are examples.

    `packs`: the graph drops padding itself, where the model's architecture allows it.

    Raises UsageError `export-unsupported` where torch.export cannot follow the task or the model.
    """
    plain = pad(copy.deepcopy(model)).to(device="cpu", dtype=torch.float32).eval()
    mask = task.pads.get(MASK)
    packing = pack_inside(plain) if packs and mask is not None and mask.side == "right" else None
    leave_unread_out(plain)
    plain.config.use_cache = False  # a decoder would begin with an empty one, and give it back
    batch = to_tensors(_example(task, features), "cpu")
    names = tuple(batch.inputs)
    inputs = {**batch.inputs, **_packed_by(batch, packing)}
    free = tuple(
        dict.fromkeys(_free_axes(name, tensor, task), torch.export.Dim.DYNAMIC) for name, tensor in inputs.items()
    )
    try:
        with torch.no_grad(), quiet():
            outputs = tuple(task.infer(plain, batch))
            graph = _TaskGraph(plain, task, names, outputs, packing)
            program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes={"inputs": free}, strict=False)
            _keep_masks_finite(program)
    except MemoryError:
        raise
    except Exception as error:  # whatever the tracer met inside of a model that nobody has tried
        raise unsupported(model, task, error) from error
    [last] = [node for node in program.graph.nodes if node.op == "output"]
    shapes = [
        tuple(axis if isinstance(axis, int) else None for axis in node.meta["val"].shape) for node in last.args[0]
    ]
    return Traced(program, names, tuple(zip(outputs, shapes, strict=True)), packing is not None)


def _keep_masks_finite(program: Any) -> None:
    """Give attention a mask of 0 and -1e30 instead of true and false.

    A token that may attend to nothing (padding further than a window from any text) gets zeros from torch and NaN from
    the runtimes, and a pooling that multiplies it by 0 hands the NaN on to the whole text.
    """
    aten = torch.ops.aten
    finite: dict[Any, Any] = {}
    for node in list(program.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, torch.fx.Node) or mask.meta["val"].dtype is not torch.bool:
            continue
        if mask not in finite:
            # By selection, not arithmetic, which int8 would round as if it were the text's.
            value = mask.meta["val"]
            with program.graph.inserting_after(mask):
                zeros = program.graph.call_function(aten.zeros_like.default, (mask,), {"dtype": torch.float32})
            with program.graph.inserting_after(zeros):
                hidden = program.graph.call_function(aten.logical_not.default, (mask,))
            with program.graph.inserting_after(hidden):
                last = program.graph.call_function(aten.masked_fill.Scalar, (zeros, hidden, -1e30))
            with value.fake_mode:
                zeros.meta["val"] = torch.zeros_like(value, dtype=torch.float32)
                hidden.meta["val"] = value.logical_not()
                last.meta["val"] = zeros.meta["val"].masked_fill(hidden.meta["val"], -1e30)
            finite[mask] = last
        node.replace_input_with(mask, finite[mask])
    program.graph_module.recompile()


def unsupported(model: torch.nn.Module, task: Task, error: Exception) -> UsageError:
    """The error for a model and task that cannot become a graph."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return UsageError(
        "export-unsupported",
        f"{task.name} with {type(model).__name__} cannot become a graph: {reason[:200]}",
        value=task.name,
        fix='use format="safetensors", which every model has, or another checkpoint',
    )


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and values of a model's tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def embedding_rows(model: Any) -> int | None:
    """How many tokens a model has a vector for; None for one that reads no tokens."""
    embeddings = model.get_input_embeddings()
    return embeddings.num_embeddings if isinstance(embeddings, torch.nn.Embedding) else None


class _TaskGraph(torch.nn.Module):
    """`task.infer` as a module: tensors in, tensors out, both in a fixed order."""

    def __init__(
        self,
        model: torch.nn.Module,
        task: Task,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        packing: Packing | None,
    ) -> None:
        super().__init__()
        self.model = model
        self._task, self._inputs, self._outputs, self._packing = task, inputs, outputs, packing

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`inputs`: the task's, and behind them `PACK_INPUTS`, where the model drops padding."""
        if self._packing is not None:
            self._packing.pack = GraphPack(*inputs[len(self._inputs) :])
        batch = Batch((), dict(zip(self._inputs, inputs[: len(self._inputs)], strict=True)), {})
        outputs = self._task.infer(self.model, batch)
        return tuple(outputs[name] for name in self._outputs)


def _packed_by(batch: Batch, packing: Packing | None) -> dict[str, torch.Tensor]:
    """What the traced graph is given beside the batch; `packing` is set to it."""
    if packing is None:
        return {}
    inputs = {name: torch.from_numpy(array) for name, array in pack_inputs(batch.inputs[MASK].numpy()).items()}
    packing.pack = GraphPack(*inputs.values())
    return inputs


def _free_axes(name: str, tensor: torch.Tensor, task: Task) -> range:
    return range(tensor.ndim if name in PACK_INPUTS else 1 + task.pads[name].per_token)


def _example(task: Task, features: Sequence[Feature]) -> Batch:
    """A few features of middle length. Rows and tokens differ in number, or the tracer would take them for one."""
    ordered = sorted((feature for feature in features if feature.length > 1), key=lambda feature: feature.length)
    middle = ordered[len(ordered) // 2 :][:1] or list(features[:1])
    rows = 3 if middle[0].length != 3 else 4
    return collate(middle * rows, task.pads)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters and their helpers say about their own insides."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
