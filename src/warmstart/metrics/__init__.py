"""Metrics and their intervals, in numpy alone. Each function returns a `Metric`: value, lo, hi.

single-label   accuracy, macro_f1, matthews, auroc; confusion and per_class
multi-label    exact_match, micro_f1, multilabel_macro_f1, auroc
regression     pearson, spearman, mae
ranked lists   mrr, ndcg
answers        answer_scores: exact match and F1 of each row
tokens         perplexity
entities       entity_scores, tag_accuracy
texts          bleu, chrf; rouge_scores and chrf_scores of each row
any statistic  mean, wilson, bootstrap

A `Measure` is a metric that can be computed again from numbers of each row; `paired_difference` compares two models by
one.
"""

from warmstart.metrics.answers import answer_scores, normalize_answer
from warmstart.metrics.classification import ClassScore, accuracy, confusion, macro_f1, matthews, per_class
from warmstart.metrics.entities import entity_counts, entity_scores, tag_accuracy
from warmstart.metrics.interval import Metric, bootstrap, wilson
from warmstart.metrics.language import perplexity
from warmstart.metrics.measure import Measure
from warmstart.metrics.multilabel import exact_match, micro_f1, multilabel_macro_f1
from warmstart.metrics.paired import Difference, mcnemar, paired_difference
from warmstart.metrics.ranking import auroc
from warmstart.metrics.regression import mae, pearson, spearman
from warmstart.metrics.retrieval import gains, mean, mrr, ndcg, reciprocal_ranks
from warmstart.metrics.rouge import rouge_scores
from warmstart.metrics.translation import bleu, bleu_counts, chrf, chrf_counts, chrf_scores

__all__ = [
    "ClassScore",
    "Difference",
    "Measure",
    "Metric",
    "accuracy",
    "answer_scores",
    "auroc",
    "bleu",
    "bleu_counts",
    "bootstrap",
    "chrf",
    "chrf_counts",
    "chrf_scores",
    "confusion",
    "entity_counts",
    "entity_scores",
    "exact_match",
    "gains",
    "macro_f1",
    "mae",
    "matthews",
    "mcnemar",
    "mean",
    "micro_f1",
    "mrr",
    "multilabel_macro_f1",
    "ndcg",
    "normalize_answer",
    "paired_difference",
    "pearson",
    "per_class",
    "perplexity",
    "reciprocal_ranks",
    "rouge_scores",
    "spearman",
    "tag_accuracy",
    "wilson",
]
