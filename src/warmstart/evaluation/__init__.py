"""Results of evaluations: kept, read back, and compared with each other. Imports neither torch nor transformers."""

from warmstart.evaluation.comparison import Comparison, compare_evaluations
from warmstart.evaluation.kept import read_predictions
from warmstart.evaluation.result import Evaluation, cell, make_folder, reported, scoring_of

__all__ = [
    "Comparison",
    "Evaluation",
    "cell",
    "compare_evaluations",
    "make_folder",
    "read_predictions",
    "reported",
    "scoring_of",
]
