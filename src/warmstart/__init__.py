"""warmstart: from a pretrained Hugging Face checkpoint to predictions, fine-tuning and evaluation.

    import warmstart as ws

    pipe = ws.load("starter")
    pipe("I love LangChain!")

Importing this package imports neither torch nor transformers: each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warmstart.engine.unpad import pad, unpad, why_padded
    from warmstart.errors import CheckpointError, DataError, TrainingError, UsageError, WarmstartError
    from warmstart.evaluation.comparison import Comparison
    from warmstart.evaluation.result import Evaluation
    from warmstart.pipeline import Pipeline
    from warmstart.serving.limits import Limits
    from warmstart.serving.server import serve
    from warmstart.training.batches import batches
    from warmstart.training.checkpointer import Checkpointer
    from warmstart.training.config import TrainConfig
    from warmstart.training.recipes import LayerDecay, LoRA, Loss, TopLayers, WeightAverage
    from warmstart.verbs.choose import load_for
    from warmstart.verbs.compare import compare
    from warmstart.verbs.evaluate import evaluate
    from warmstart.verbs.export import export
    from warmstart.verbs.export_graph import Export
    from warmstart.verbs.load import load
    from warmstart.verbs.parity import Tolerance
    from warmstart.verbs.search import search
    from warmstart.verbs.train import Run, train

__version__ = "0.1.0"

_HOME = {
    "CheckpointError": "warmstart.errors",
    "Checkpointer": "warmstart.training.checkpointer",
    "Comparison": "warmstart.evaluation.comparison",
    "DataError": "warmstart.errors",
    "Evaluation": "warmstart.evaluation.result",
    "Export": "warmstart.verbs.export_graph",
    "LayerDecay": "warmstart.training.recipes",
    "Limits": "warmstart.serving.limits",
    "LoRA": "warmstart.training.recipes",
    "Loss": "warmstart.training.recipes",
    "Pipeline": "warmstart.pipeline",
    "Run": "warmstart.verbs.train",
    "Tolerance": "warmstart.verbs.parity",
    "TopLayers": "warmstart.training.recipes",
    "TrainConfig": "warmstart.training.config",
    "TrainingError": "warmstart.errors",
    "UsageError": "warmstart.errors",
    "WarmstartError": "warmstart.errors",
    "WeightAverage": "warmstart.training.recipes",
    "batches": "warmstart.training.batches",
    "compare": "warmstart.verbs.compare",
    "evaluate": "warmstart.verbs.evaluate",
    "export": "warmstart.verbs.export",
    "load": "warmstart.verbs.load",
    "load_for": "warmstart.verbs.choose",
    "pad": "warmstart.engine.unpad",
    "search": "warmstart.verbs.search",
    "serve": "warmstart.serving.server",
    "train": "warmstart.verbs.train",
    "unpad": "warmstart.engine.unpad",
    "why_padded": "warmstart.engine.unpad",
}

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "Comparison",
    "DataError",
    "Evaluation",
    "Export",
    "LayerDecay",
    "Limits",
    "LoRA",
    "Loss",
    "Pipeline",
    "Run",
    "Tolerance",
    "TopLayers",
    "TrainConfig",
    "TrainingError",
    "UsageError",
    "WarmstartError",
    "WeightAverage",
    "batches",
    "compare",
    "evaluate",
    "export",
    "load",
    "load_for",
    "pad",
    "search",
    "serve",
    "train",
    "unpad",
    "why_padded",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'warmstart' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
