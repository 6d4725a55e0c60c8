"""Metrics and their intervals, in numpy alone. Each function returns a `Metric`: value, lo, hi.

single-label   accuracy, macro_f1, matthews, auroc; confusion and per_class
multi-label    exact_match, micro_f1, multilabel_macro_f1, auroc
regression     pearson, spearman, mae
any statistic  wilson, bootstrap
"""

from warmstart.metrics.classification import ClassScore, accuracy, confusion, macro_f1, matthews, per_class
from warmstart.metrics.interval import Metric, bootstrap, wilson
from warmstart.metrics.multilabel import exact_match, micro_f1, multilabel_macro_f1
from warmstart.metrics.ranking import auroc
from warmstart.metrics.regression import mae, pearson, spearman

__all__ = [
    "ClassScore",
    "Metric",
    "accuracy",
    "auroc",
    "bootstrap",
    "confusion",
    "exact_match",
    "macro_f1",
    "mae",
    "matthews",
    "micro_f1",
    "multilabel_macro_f1",
    "pearson",
    "per_class",
    "spearman",
    "wilson",
]
