"""Whether the answer is one of the references, however its words are spaced."""

from jaxtune.metrics.metric import Answered, mean, references


def _score(row: Answered) -> float:
    return float(row.answer.split() in [each.split() for each in references(row)])


EXACT = mean("exact", _score)
