"""Exact match: 1 if the answer equals a reference up to white space, else 0."""

from jaxtune.metrics.metric import Prediction, mean, references


def _score(row: Prediction) -> float:
    return float(row.answer.split() in [each.split() for each in references(row)])


EXACT = mean("exact", _score)
