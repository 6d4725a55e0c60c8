"""Reading and writing rows: formats, columns recognised by name, labels, splits."""

from warmstart.rows.answers import GoldAnswer, Placed, place, read_answers
from warmstart.rows.labels import Labels, check_training_labels, unseen
from warmstart.rows.limits import DEFAULT_LIMITS, Limits
from warmstart.rows.reading import read, texts
from warmstart.rows.row import Field, Row
from warmstart.rows.spans import Span, read_spans
from warmstart.rows.split import bucket, hold_out
from warmstart.rows.stream import RowStream
from warmstart.rows.targets import infer_problem, number, spelling
from warmstart.rows.write import RowWriter, check_output, open_writer

__all__ = [
    "DEFAULT_LIMITS",
    "Field",
    "GoldAnswer",
    "Labels",
    "Limits",
    "Placed",
    "Row",
    "RowStream",
    "RowWriter",
    "Span",
    "bucket",
    "check_output",
    "check_training_labels",
    "hold_out",
    "infer_problem",
    "number",
    "open_writer",
    "place",
    "read",
    "read_answers",
    "read_spans",
    "spelling",
    "texts",
    "unseen",
]
