"""One file a task, the same names in each. `TASKS` registers them; `find_task` takes a name or a known alias."""

from __future__ import annotations

from collections.abc import Mapping

from warmstart.errors import UsageError, did_you_mean
from warmstart.tasks.contract import (
    Prediction,
    Scores,
    Task,
    WeighsClasses,
    WritesFiles,
    as_dict,
    from_dict,
    prediction_fields,
)
from warmstart.tasks.fill_mask import FillMask
from warmstart.tasks.question_answering import QuestionAnswering
from warmstart.tasks.rerank import Rerank
from warmstart.tasks.sentence_embedding import Embedding
from warmstart.tasks.text_classification import TextClassification
from warmstart.tasks.text_generation import TextGeneration
from warmstart.tasks.text_to_text import TextToText
from warmstart.tasks.token_classification import TokenClassification
from warmstart.tasks.zero_shot_classification import ZeroShotClassification

TASKS: Mapping[str, type[Task]] = {
    "text-classification": TextClassification,
    "token-classification": TokenClassification,
    "question-answering": QuestionAnswering,
    "sentence-embedding": Embedding,
    "rerank": Rerank,
    "zero-shot-classification": ZeroShotClassification,
    "fill-mask": FillMask,
    "text-generation": TextGeneration,
    "text-to-text": TextToText,
}

# Names that transformers' `pipeline(...)` and older habits use.
ALIASES: Mapping[str, str] = {
    "sentiment-analysis": "text-classification",
    "ner": "token-classification",
    "feature-extraction": "sentence-embedding",
    "summarization": "text-to-text",
    "translation": "text-to-text",
    "text2text-generation": "text-to-text",
}

__all__ = [
    "ALIASES",
    "TASKS",
    "Prediction",
    "Scores",
    "Task",
    "WeighsClasses",
    "WritesFiles",
    "as_dict",
    "find_task",
    "from_dict",
    "prediction_fields",
]


def find_task(name: str) -> type[Task]:
    """The task of this name or alias.

    Raises UsageError "task-unknown", before any file or network is touched.

    >>> find_task("sentiment-analysis").name
    'text-classification'
    """
    canonical = ALIASES.get(name, name)
    if canonical not in TASKS:
        raise UsageError(
            "task-unknown",
            f"there is no task {name!r}",
            value=name,
            fix=did_you_mean(name, [*TASKS, *ALIASES]),
        )
    return TASKS[canonical]
