"""Metrics of answers, one file each, and their bootstrap confidence intervals.

A metric is a `Metric` over `Prediction`s: a constant in its file (`bleu.BLEU`, `vqa.VQA`), or the
result of a function there where the task must supply something (`parent.parent(table_of)`).
"""

from jaxtune.metrics.intervals import Difference, Figure, paired, per_row, summarise
from jaxtune.metrics.metric import Metric, Prediction, mean

__all__ = [
    "Difference",
    "Figure",
    "Metric",
    "Prediction",
    "mean",
    "paired",
    "per_row",
    "summarise",
]
