"""Search: the nearest of many embeddings, exactly, with memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from warmstart.errors import DataError, UsageError, Where
from warmstart.features import Array
from warmstart.tasks.sentence_embedding import SentenceEmbedding

Similarity = Literal["cosine", "dot"]

# Bytes of scores, and of embeddings as numbers to compute with, that are held at a time.
_BUDGET = 32 << 20


@dataclass(frozen=True, slots=True)
class Hit:
    """One of the nearest: `index`, its line in the embeddings from 0, and `score`, its similarity to the query."""

    index: int
    score: float


@overload
def search(
    queries: SentenceEmbedding, embeddings: str | Path | Array, *, k: int = 10, similarity: Similarity = "cosine"
) -> list[Hit]: ...
@overload
def search(
    queries: Sequence[SentenceEmbedding],
    embeddings: str | Path | Array,
    *,
    k: int = 10,
    similarity: Similarity = "cosine",
) -> list[list[Hit]]: ...
@overload
def search(
    queries: Array, embeddings: str | Path | Array, *, k: int = 10, similarity: Similarity = "cosine"
) -> list[Any]: ...
def search(queries: Any, embeddings: Any, *, k: int = 10, similarity: Similarity = "cosine") -> list[Any]:
    """The `k` embeddings nearest to each query, best first; of equal scores the lower index.

    `queries`: an embedding prediction or a vector (H,) gives one list, several predictions or a matrix (Q, H) a list of
    lists. `embeddings`: a `.npy` file of a matrix (N, H), as `warmstart predict -o corpus.npy` writes it, or an array.
    Nothing is left out or approximated: all N are compared, in float32 (float64 if they are). A file is mapped into
    memory and read a piece at a time, so it may be larger than memory. The cosine with a vector of zeros is 0.

        nearest = ws.search(ws.load("starter-encoder")("a film"), "corpus.npy", k=3)
        nearest[0].index, nearest[0].score

    Raises UsageError "search-k" or "search-similarity"; DataError "embeddings-unreadable", "embeddings-shape",
    "embeddings-width" or "scores-not-finite".
    """
    if type(k) is not int or k < 1:
        raise UsageError("search-k", "k is how many are wanted: a whole number from 1", value=k, fix="e.g. k=10")
    if similarity not in ("cosine", "dot"):
        raise UsageError(
            "search-similarity", "the similarity is 'cosine' or 'dot'", value=similarity, fix='give similarity="cosine"'
        )
    one, wanted = _matrix_of(queries)
    corpus, name = _corpus_of(embeddings)
    if wanted.shape[1] != corpus.shape[1]:
        raise DataError(
            "embeddings-width",
            "queries and embeddings have vectors of different widths",
            where=name,
            value=f"{wanted.shape[1]} and {corpus.shape[1]}",
            fix="embed both with the same checkpoint",
        )
    kind = np.float64 if corpus.dtype == np.float64 else np.float32
    wanted = _prepared(wanted.astype(kind), similarity, Where(source="queries"), first=0)
    found = [hits for block in _blocks(wanted) for hits in _nearest(block, corpus, k, similarity, name)]
    return found[0] if one else found


def _nearest(queries: Array, corpus: Array, k: int, similarity: Similarity, name: str) -> list[list[Hit]]:
    """For a block of queries (Q, H), prepared as the corpus is about to be."""
    count, width = queries.shape
    rows = max(1, _BUDGET // (queries.itemsize * (width + count)))
    best = np.full((count, 0), -np.inf, queries.dtype)  # (Q, up to k), best first
    places = np.zeros((count, 0), np.int64)
    for first in range(0, len(corpus), rows):
        piece = np.asarray(corpus[first : first + rows], queries.dtype)
        scores = queries @ _prepared(piece, similarity, Where(source=name), first=first).T  # (Q, rows)
        kept = _top(scores, k)
        scores = np.take_along_axis(scores, kept, axis=1)
        best, places = np.hstack([best, scores]), np.hstack([places, kept + first])
        order = np.lexsort((places, -best))[:, :k]
        best, places = np.take_along_axis(best, order, axis=1), np.take_along_axis(places, order, axis=1)
    return [
        [Hit(index, score) for index, score in zip(indices, scores, strict=True)]
        for indices, scores in zip(places.tolist(), best.tolist(), strict=True)
    ]


def _top(scores: Array, k: int) -> Array:
    """The positions of the k largest of each row of (Q, M), in any order; of equal ones those that come first."""
    count, width = scores.shape
    if k >= width:
        return np.tile(np.arange(width), (count, 1))
    kept = np.argpartition(scores, width - k, axis=1)[:, width - k :]
    least = np.take_along_axis(scores, kept, axis=1).min(axis=1)
    # The partition takes any of the equal ones: where more are as good as the least that was taken, choose again.
    for i in np.flatnonzero((scores >= least[:, None]).sum(axis=1) > k):
        above, equal = np.flatnonzero(scores[i] > least[i]), np.flatnonzero(scores[i] == least[i])
        kept[i] = np.concatenate([above, equal[: k - len(above)]])
    return kept


def _blocks(queries: Array) -> Iterator[Array]:
    """Blocks of queries, so that many of them leave room for pieces of the corpus that are worth a product."""
    for start in range(0, len(queries), 1024):
        yield queries[start : start + 1024]


def _prepared(vectors: Array, similarity: Similarity, where: Where, *, first: int) -> Array:
    """Vectors (N, H) whose dot products are the similarity. Raises DataError "scores-not-finite" with the line."""
    squares = np.einsum("nh,nh->n", vectors, vectors)
    if not np.isfinite(squares).all():
        # A long vector's square may overflow where the vector itself is finite: it has no cosine in this type either.
        line = first + int(np.flatnonzero(~np.isfinite(squares))[0])
        raise DataError(
            "scores-not-finite",
            "a vector holds NaN, infinity or numbers too large to compare",
            where=Where(source=where.source, row=line),
            fix="leave that vector out, or embed its text again in float32",
        )
    return vectors / np.sqrt(np.maximum(squares, 1e-24))[:, None] if similarity == "cosine" else vectors


def _matrix_of(queries: Any) -> tuple[bool, Array]:
    """Whether there is one query, and all of them as (Q, H)."""
    if isinstance(queries, SentenceEmbedding):
        return True, np.array([queries.embedding], dtype=np.float32)
    if isinstance(queries, list | tuple) and queries and all(isinstance(q, SentenceEmbedding) for q in queries):
        return False, np.array([query.embedding for query in queries], dtype=np.float32)
    matrix = np.asarray(queries) if isinstance(queries, np.ndarray) else np.zeros(())
    if matrix.ndim == 1 and matrix.size:
        return True, _checked(matrix[None], "queries")
    return False, _checked(matrix, "queries")


def _corpus_of(embeddings: Any) -> tuple[Array, str]:
    """The matrix and its name; a file is mapped, not read, and nothing in it is run."""
    if isinstance(embeddings, np.ndarray):
        return _checked(embeddings, "embeddings"), "embeddings"
    name = str(embeddings)
    try:
        matrix = np.lib.format.open_memmap(embeddings, mode="r")
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError) as error:
        raise DataError(
            "embeddings-unreadable",
            f"the embeddings cannot be read as a .npy matrix: {str(error)[:200]}",
            where=name,
            fix="write them with: warmstart predict -m MODEL -i texts.txt -o corpus.npy",
        ) from None
    return _checked(matrix, name), name


def _checked(matrix: Array, name: str) -> Array:
    if matrix.ndim != 2 or not matrix.shape[1] or matrix.dtype not in (np.float16, np.float32, np.float64):
        raise DataError(
            "embeddings-shape",
            "vectors are a matrix of real numbers, one vector a line",
            where=name,
            value=f"{matrix.dtype} of shape {matrix.shape}",
            fix="give float32 of shape (vectors, width)",
        )
    return matrix
