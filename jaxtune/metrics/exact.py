"""Whether the answer is one of the references, however its words are spaced."""

from jaxtune.metrics.metric import Prediction, mean, references


def _score(row: Prediction) -> float:
    return float(row.answer.split() in [each.split() for each in references(row)])


EXACT = mean("exact", _score)
