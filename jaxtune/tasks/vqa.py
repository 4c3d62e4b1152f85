"""Visual question answering in PaliGemma's format: the prompt is a line `answer en {question}`."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from jaxtune.data.errors import RowError, column
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.vqa import VQA
from jaxtune.tasks import short, texts

COLUMNS = {
    "question": "the question",
    "answers": "answers of several people, a list of texts or of records with an `answer`",
    "answer": "instead of answers: the only answer",
}
METRICS = (VQA, EXACT)
ASK = "question"
PREFIX = "answer en {question}\n"


def prefix(record: Mapping[str, Any], place: str) -> str:
    """Returns the instruction and the question, as one line."""
    question = column(record, "question", place)
    if not isinstance(question, str) or not question.strip():
        raise RowError(place, f"column 'question' is {short(question)}; expected a question")
    return PREFIX.format(question=question.strip())


def suffix(record: Mapping[str, Any], place: str) -> str:
    """Returns the most frequent answer, or the first of equally frequent ones."""
    ((answer, _),) = Counter(references(record, place)).most_common(1)
    return answer


def references(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """Returns all answers, with repetitions."""
    given = {**record, "answers": _plain(record.get("answers"))}
    found = texts(given, "answers", place) or texts(record, "answer", place)
    if not found:
        raise RowError(place, "no answer in 'answers' or 'answer'")
    return found


def _plain(answers: Any) -> Any:
    """Returns the texts of answers, without the other fields in the dataset's own files."""
    if not isinstance(answers, list | tuple):
        return answers
    return [each.get("answer") if isinstance(each, Mapping) else each for each in answers]
