"""What sentence embeddings can learn from pairs: their scores, each other, a negative.

Each objective says its loss, one entry a row, as sentence-transformers computes it; and how embeddings are judged by
the same rows. All compare by the cosine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from warmstart.features import Array
from warmstart.metrics import Measure
from warmstart.tasks.contract import Scores, judged

ObjectiveName = Literal["auto", "in-batch-negatives", "cosine", "triplet", "cosent"]

_CHUNK = 1 << 22  # cosines held at a time while judging: 16 MB


@dataclass(frozen=True)
class Vectors:
    """The embeddings of rows: `first` and `second` (N, H), `negatives` (M, H); tensors to learn, arrays to judge.

    `scores` (N,) are the rows' own, on the scale of the cosine, if they have any. To judge: `second_texts` (N,) and
    `negative_texts` (M,) name the texts, so that a text which stands in two rows is not its own wrong answer.
    """

    first: Any
    second: Any
    negatives: Any
    scores: Any = None
    second_texts: Sequence[str] = ()
    negative_texts: Sequence[str] = ()


class Objective(Protocol):
    """What is learned from rows."""

    apart: ClassVar[bool]  # whether a text that two rows of a batch share would be right and wrong at once

    def lacks(self, candidates: int, scores: Collection[float]) -> str | None:
        """What a batch with so many second texts and negatives, and these scores, lacks to teach anything."""
        ...

    def loss(self, vectors: Vectors) -> Any:
        """Each row's loss (N,); torch in, torch out."""
        ...

    def score(self, vectors: Vectors) -> Scores:
        """Judge numpy vectors."""
        ...


@dataclass(frozen=True)
class InBatchNegatives:
    """A row's second text is to be nearer to its first than the second texts and negatives of all rows of the batch.

    sentence-transformers' MultipleNegativesRankingLoss: cross entropy over the cosines times `scale` (Henderson et al.,
    "Efficient natural language response suggestion for Smart Reply", 2017; A. van den Oord et al., 2018).
    """

    scale: float
    apart: ClassVar[bool] = True

    def lacks(self, candidates: int, scores: Collection[float]) -> str | None:
        return None if candidates > 1 else "a second row, or a `negative`"

    def loss(self, vectors: Vectors) -> Any:
        import torch
        import torch.nn.functional as F

        first = F.normalize(vectors.first, dim=-1)
        candidates = F.normalize(torch.cat([vectors.second, vectors.negatives]), dim=-1)
        cosines = first @ candidates.T  # (N, N + M)
        own = cosines.diagonal()
        return (cosines * self.scale).logsumexp(dim=-1) - own * self.scale

    def score(self, vectors: Vectors) -> Scores:
        """Accuracy: the own second text is the nearest of all. MRR: of its rank among them."""
        first, second = _unit(vectors.first), _unit(vectors.second)
        candidates = np.concatenate([second, _unit(vectors.negatives)]) if len(vectors.negatives) else second
        names = np.unique([*vectors.second_texts, *vectors.negative_texts], return_inverse=True)[1]
        losses, ranks = np.empty(len(first)), np.empty(len(first))
        rows = max(1, _CHUNK // len(candidates))
        for start in range(0, len(first), rows):
            part = slice(start, start + rows)
            cosines = (first[part] @ candidates.T).astype(np.float64)  # (rows, N + M)
            here = np.arange(len(cosines))
            own = cosines[here, start + here]
            losses[part] = _log_sum_exp(self.scale * cosines) - self.scale * own
            others = names[None, :] != names[start + here][:, None]
            above = (others & (cosines > own[:, None])).sum(axis=1)
            ranks[part] = 1 + above + (others & (cosines == own[:, None])).sum(axis=1) / 2
        right = ranks == 1
        return judged(
            {"loss": losses, "correct": right, "reciprocal_rank": 1 / ranks},
            {"accuracy": Measure("share", ("correct",)), "mrr": Measure("mean", ("reciprocal_rank",))},
            primary="mrr",
        )


@dataclass(frozen=True)
class CosineRegression:
    """The cosine is to be the row's score: squared error, sentence-transformers' CosineSimilarityLoss."""

    apart: ClassVar[bool] = False

    def lacks(self, candidates: int, scores: Collection[float]) -> str | None:
        return None

    def loss(self, vectors: Vectors) -> Any:
        import torch.nn.functional as F

        return (F.cosine_similarity(vectors.first, vectors.second) - vectors.scores) ** 2

    def score(self, vectors: Vectors) -> Scores:
        """Spearman and Pearson of cosines and scores."""
        return _score_pairs(vectors)


@dataclass(frozen=True)
class CoSent:
    """Pairs are to be ordered by their cosines as by their scores, sentence-transformers' CoSENTLoss.

    log(1 + sum of exp(scale (cosine i - cosine j)) over pairs of rows with score i < score j), which is one number for
    the batch: each row has it as its loss. Rows may share a text: what belongs to one query, better and worse, is
    what is to be ordered. J. Su, "CoSENT", 2022.
    """

    scale: float
    apart: ClassVar[bool] = False

    def lacks(self, candidates: int, scores: Collection[float]) -> str | None:
        return None if len(set(scores)) > 1 else "two rows with different scores"

    def loss(self, vectors: Vectors) -> Any:
        import torch.nn.functional as F

        cosines = F.cosine_similarity(vectors.first, vectors.second) * self.scale  # (N,)
        wrong = (cosines[:, None] - cosines[None, :])[vectors.scores[:, None] < vectors.scores[None, :]]
        whole = F.pad(wrong, (1, 0)).logsumexp(dim=0)  # the 1 is exp(0)
        return whole.expand(len(cosines))

    def score(self, vectors: Vectors) -> Scores:
        """As of `CosineRegression`: the loss of rows taken together is no property of any of them."""
        return _score_pairs(vectors)


@dataclass(frozen=True)
class Triplet:
    """The second text is to be nearer to the first than the negative by `margin`, in cosine distance.

    sentence-transformers' TripletLoss with TripletDistanceMetric.COSINE (F. Schroff et al., "FaceNet", 2015).
    """

    margin: float
    apart: ClassVar[bool] = False

    def lacks(self, candidates: int, scores: Collection[float]) -> str | None:
        return None

    def loss(self, vectors: Vectors) -> Any:
        import torch.nn.functional as F

        near = F.cosine_similarity(vectors.first, vectors.second)
        return F.relu(F.cosine_similarity(vectors.first, vectors.negatives) - near + self.margin)

    def score(self, vectors: Vectors) -> Scores:
        """Accuracy: the second text is nearer than the negative."""
        near, far = _cosines(vectors.first, vectors.second), _cosines(vectors.first, vectors.negatives)
        right = near > far
        return judged(
            {"loss": np.maximum(far - near + self.margin, 0), "correct": right},
            {"accuracy": Measure("share", ("correct",))},
            primary="accuracy",
        )


def _score_pairs(vectors: Vectors) -> Scores:
    cosines = _cosines(vectors.first, vectors.second)
    error = cosines - vectors.scores
    return judged(
        {"loss": error**2, "error": error, "true": np.asarray(vectors.scores), "predicted": cosines},
        {
            "spearman": Measure("spearman", ("true", "predicted")),
            "pearson": Measure("pearson", ("true", "predicted")),
        },
        primary="spearman",
    )


def _unit(vectors: Array) -> Array:
    """Vectors (N, H) scaled to length 1."""
    exact = np.asarray(vectors, np.float32)
    return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)


def _cosines(first: Array, second: Array) -> Array:
    """The cosine of each pair, (N,)."""
    one, other = (np.asarray(vectors, np.float64) for vectors in (first, second))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-12))


def _log_sum_exp(values: Array) -> Array:
    """Over the last axis of (N, M): (N,)."""
    top = values.max(axis=1)
    return np.asarray(top + np.log(np.exp(values - top[:, None]).sum(axis=1)))
