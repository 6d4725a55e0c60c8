"""From a checkpoint's token vectors to one vector a text, as its sentence-transformers files say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from warmstart.errors import CheckpointError
from warmstart.tasks.embedding_settings import EmbeddingSettings, Pooling
from warmstart.tokenization import Tokenizer


def fitted(tokenizer: Tokenizer, settings: EmbeddingSettings, folder: Path) -> Tokenizer:
    """The tokenizer with the limit of the settings, if that is the lower one.

    Raises CheckpointError "embedding-config-unusable" where texts are to be lower-cased and the tokenizer does not.
    """
    normalizer = tokenizer.rust.normalizer
    if settings.lower_case and (normalizer is None or normalizer.normalize_str("A") != "a"):
        raise CheckpointError(
            "embedding-config-unusable",
            "do_lower_case is set, and the tokenizer does not lower case",
            where=str(folder),
            fix="get the checkpoint from its publisher again, or use another one",
        )
    return dataclasses.replace(tokenizer, limit=min(tokenizer.limit, settings.limit or tokenizer.limit))


def pool(states: Any, mask: Any, pooling: Pooling) -> Any:
    """Token vectors (B, T, H) to one each (B, H); padding, where the mask (B, T) is 0, does not count."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = mask.sum(dim=1) - 1
        return states[last.new_tensor(range(len(states))), last]
    if pooling == "max":
        return states.masked_fill(weights == 0, float("-inf")).amax(dim=1)
    counts = weights.sum(dim=1).clamp(min=1e-9)
    return (states * weights).sum(dim=1) / (counts.sqrt() if pooling == "mean_sqrt_len" else counts)
