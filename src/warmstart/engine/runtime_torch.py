"""The reference runtime: a PyTorch model on a device."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from warmstart.batching import Shapes
from warmstart.engine.predict import MAX_TOKENS
from warmstart.engine.prepacked_layer import prepacked
from warmstart.errors import is_out_of_memory
from warmstart.features import Array, Batch
from warmstart.tasks import Task
from warmstart.tasks.contract import Generates
from warmstart.tasks.decoding import Answer


class EvalMode:
    """Keeps a model in eval mode while any thread is in a block of it; after the last, each module has its mode back.

    Whoever switched back alone would turn dropout on under the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._training: list[torch.nn.Module] = []

    @contextmanager
    def of(self, model: torch.nn.Module) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._training = [module for module in model.modules() if module.training]
                if self._training:
                    model.eval()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    for module in self._training:
                        module.training = True


@dataclass(frozen=True)
class TorchRuntime:
    """Runs batches through `model`, which stays the person's own object: its mode is restored after each batch.

    `in_eval`: it is nobody's but ours, and in eval mode for good.
    """

    model: torch.nn.Module
    task: Task
    device: str
    in_eval: bool = False
    _mode: EvalMode = field(default_factory=EvalMode, init=False, repr=False, compare=False)

    @property
    def shapes(self) -> Shapes:
        """On a CPU fewer tokens: activations that stay in the cache (MiniLM ran 1.2 times as fast as with 4,096)."""
        return Shapes(MAX_TOKENS // 2 if self.device == "cpu" else MAX_TOKENS)

    def frozen(self) -> TorchRuntime:
        """This runtime with the weights of now, laid out once for quicker products where the processor gains by it.

        What is changed in `model` afterwards, this one sees in part or not at all. It takes the memory of its layers'
        weights once more, and shares all else.
        """
        model = prepacked(self.model)
        return self if model is self.model else TorchRuntime(model.eval(), self.task, self.device, in_eval=True)

    def run(self, batch: Batch) -> dict[str, Array]:
        """Each output of `task.infer` as a float32 (or integer) array whose first axis is the batch's features.

        Raises MemoryError where the device has not enough memory for the batch.
        """
        with _lack_of_memory_said(), torch.inference_mode(), self._eval():
            outputs = self.task.infer(self.model, to_tensors(batch, self.device))
            return {name: _to_array(output) for name, output in outputs.items()}

    def _eval(self) -> AbstractContextManager[None]:
        return nullcontext() if self.in_eval else self._mode.of(self.model)

    def stream(self, batch: Batch) -> Generator[Sequence[Answer]]:
        """The answers of `task.stream` after each token. Between tokens the model is the person's own again.

        Raises what the task's `stream` raises, at once; MemoryError as `run` does.
        """
        assert isinstance(self.task, Generates), "`TextStream` has checked it"
        with _lack_of_memory_said():
            return self._each(self.task.stream(self.model, to_tensors(batch, self.device)))

    def _each(self, steps: Iterator[Sequence[Answer]]) -> Generator[Sequence[Answer]]:
        while True:
            # Neither mode may reach over a `yield`: they belong to the thread, which goes on with other things.
            with _lack_of_memory_said(), torch.inference_mode(), self._eval():
                answers = next(steps, None)
            if answers is None:
                return
            yield answers


@contextmanager
def _lack_of_memory_said() -> Iterator[None]:
    """Raises MemoryError for what the device says when it has not enough memory."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


def to_tensors(batch: Batch, device: str) -> Batch:
    """The same batch with tensors on `device` for leaves."""
    return dataclasses.replace(
        batch,
        inputs={name: torch.from_numpy(array).to(device) for name, array in batch.inputs.items()},
        targets={name: torch.from_numpy(array).to(device) for name, array in batch.targets.items()},
    )


def _to_array(output: torch.Tensor) -> Array:
    return (output.float() if output.is_floating_point() else output).cpu().numpy()
