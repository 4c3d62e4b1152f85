"""How good answers are: one file a metric, and what a sample of rows says of each.

A metric is a `Metric` over `Answered` rows: a constant in its file (`bleu.BLEU`, `vqa.VQA`), or
made there by a function where a task has something to say (`parent.parent(table_of)`).
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
