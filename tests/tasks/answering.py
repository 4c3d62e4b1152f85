"""Answers to rows, scored as a task has it."""

from jaxtune import tasks
from jaxtune.metrics import Prediction, summarise

PLACE = "rows.jsonl:7"


def scored(task, *pairs, following=()):
    """Each metric's figure over pairs of a record and an answer to it."""
    rows = [
        Prediction(answer, tasks.references(task, record, PLACE), record, PLACE, following)
        for record, answer in pairs
    ]
    return {name: figure.value for name, figure in summarise(task.METRICS, rows, samples=1).items()}
