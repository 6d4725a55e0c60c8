"""SQuAD's nested JSON as rows: articles hold paragraphs, a paragraph's one context holds questions.

Source: P. Rajpurkar et al., "SQuAD: 100,000+ questions for machine comprehension of text" (2016), and "Know what you
don't know: unanswerable questions for SQuAD" (2018), whose unanswerable questions have an empty list of answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from warmstart.errors import DataError, Where
from warmstart.rows.row import Row
from warmstart.rows.source import Raw


def is_squad(articles: Sequence[Any]) -> bool:
    """Whether the first of these objects that has paragraphs has them as SQuAD's articles do.

    >>> is_squad([{"title": "a", "paragraphs": [{"context": "It rains.", "qas": []}]}])
    True
    """
    for article in articles:
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if isinstance(paragraphs, list) and paragraphs:
            return isinstance(paragraphs[0], dict) and "qas" in paragraphs[0]
    return False


def squad_rows(articles: Sequence[Any], *, name: str, key: str) -> Iterator[Raw]:
    """One row a question, in the file's order: its own fields, the paragraph's `context` and the article's `title`.

    An article, paragraph or question of another shape comes as its DataError "squad-shape", whose field says which it
    is, e.g. `data[3].paragraphs[0].qas`; `row` counts questions.
    """
    row = 0
    for a, article in enumerate(articles):
        place = f"{key}[{a}]"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield _malformed(article, "an article must be an object with a list of paragraphs", name, place, row)
            row += 1
            continue
        title = {"title": article["title"]} if "title" in article else {}
        for p, paragraph in enumerate(paragraphs):
            for raw in _paragraph_rows(paragraph, title, name, f"{place}.paragraphs[{p}]", row):
                yield raw
                row += 1


def _paragraph_rows(paragraph: Any, title: dict[str, Any], name: str, place: str, row: int) -> Iterator[Raw]:
    questions = paragraph.get("qas") if isinstance(paragraph, dict) else None
    if not isinstance(questions, list) or "context" not in paragraph:
        yield _malformed(paragraph, "a paragraph must be an object with a context and a list of qas", name, place, row)
        return
    shared = title | {"context": paragraph["context"]}
    for q, question in enumerate(questions):
        if isinstance(question, dict):
            yield Row(shared | question, Where(source=name, row=row + q))
        else:
            yield _malformed(question, "a question must be an object", name, f"{place}.qas[{q}]", row + q)


def _malformed(value: object, what: str, name: str, place: str, row: int) -> DataError:
    return DataError(
        "squad-shape",
        what,
        where=Where(source=name, field=place, row=row),
        value=value,
        fix="correct the file, write one object a question as JSONL, or skip bad rows: on_error='skip'",
    )
