"""Rows answered and scored as their task does, a file of predictions as it goes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxtune import tasks
from jaxtune.assembly.wiring import Placer
from jaxtune.config.schema import Config
from jaxtune.data import images
from jaxtune.data.errors import RowError, TooLong, column
from jaxtune.data.examples import Prompt
from jaxtune.data.images import Reference
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source
from jaxtune.decoding.text import Answer, TextGenerator
from jaxtune.display.progress import Progress
from jaxtune.files import write_json, write_text
from jaxtune.metrics import Metric, Prediction, per_row, summarise
from jaxtune.metrics.exact import EXACT
from jaxtune.metrics.intervals import Figure
from jaxtune.models.paligemma import Model
from jaxtune.training.step import eval_step

CHUNK = 32  # rows answered between two writes, or as many batches as are in them
PARTIAL, WHOLE, METRICS = "predictions.partial.jsonl", "predictions.jsonl", "metrics.json"


@dataclass(frozen=True)
class EvalRow:
    """A row to answer."""

    number: int  # in its source
    place: str
    record: Mapping[str, Any]
    prompt: list[int]
    references: tuple[str, ...]
    pictures: tuple[Reference, ...] = ()
    side: int = 0  # of a picture as the model sees it


def task_of(config: Config) -> ModuleType | None:
    """The config's task, if it names one."""
    return tasks.find(config.data.task) if config.data.task else None


def metrics_of(config: Config) -> tuple[Metric, ...]:
    """What answers are scored by: what the task says, or whether they are the reference."""
    task = task_of(config)
    return task.METRICS if task else (EXACT,)


def questions(config: Config, source: Source, prompt: Prompt) -> list[EvalRow]:
    """The rows of a source as a model is asked them; without those that a survey leaves out."""
    found = []
    for number in range(len(source)):
        place = source.place(number)
        try:
            found.append(_question(config, number, source[number], place, prompt))
        except RowError as error:
            long = isinstance(error, TooLong)
            if (config.data.too_long if long else config.data.bad_rows) != "skip":
                raise
    if not found:
        raise ValueError("there is no row to answer")
    return found


def _question(config: Config, number: int, record: Mapping, place: str, prompt: Prompt) -> EvalRow:
    example = prompt(record, place)
    scored = np.flatnonzero(example.scored)
    # Of a conversation, the last turn is asked for.
    first = scored[-1] - np.argmin(example.scored[: scored[-1] + 1][::-1]) + 1
    renamed = {known: column(record, theirs, place) for known, theirs in config.data.columns}
    record, task = {**record, **renamed}, task_of(config)
    if task:
        references = tasks.references(task, record, place)
    else:
        tokens = example.tokens[first : scored[-1] + 1]
        references = (prompt.tokenizer.decode(tokens.tolist(), continues=True).strip(),)
    side = prompt.pictures.size if prompt.pictures else 0
    before = example.tokens[:first].tolist()
    return EvalRow(number, place, record, before, references, example.images, side)


def evaluate(
    answerer: TextGenerator,
    asked: Sequence[EvalRow],
    config: Config,
    directory: Path,
    progress: Progress,
    about: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Figure], list[Prediction]]:
    """Answer rows, and score them as the task does.

    `about` says what the answers depend on: what a directory holds of the same is gone on with,
    and one of something else is refused. Without, it is begun anew.
    """
    for question in asked:
        answerer.check(question.prompt, question.place)
    done = _begun(directory, about) if about else _emptied(directory)
    likeliest = getattr(task_of(config), "NEXT", 0)
    batch = config.generate.batch
    size = batch * max(1, CHUNK // batch)
    for start in range(0, len(asked), size):
        chunk = asked[start : start + size]
        # The rows that are answered together tell in the last digit: they are the same ever again.
        if all(question.number in done for question in chunk):
            continue
        progress.draw(f"answered {start:,} of {len(asked):,} rows")
        prompts = [question.prompt for question in chunk]
        replies = answerer.replies(prompts, likeliest, _pictures(chunk))
        lines = [_line(q, reply, answerer) for q, reply in zip(chunk, replies, strict=True)]
        with (directory / PARTIAL).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        done |= {line["row"]: line for line in lines}
    lines = [done[question.number] for question in asked]
    rows = [_answered(question, line) for question, line in zip(asked, lines, strict=True)]
    return _written(directory, metrics_of(config), lines, rows), rows


def _pictures(asked: Sequence[EvalRow]) -> list[np.ndarray] | None:
    """The pixels of rows' pictures; None where there are none."""
    if not any(question.pictures for question in asked):
        return None
    return [
        np.stack([images.read(each, question.side, question.place) for each in question.pictures])
        for question in asked
    ]


def _begun(directory: Path, about: Mapping[str, Any]) -> dict[int, dict]:
    """The answers that are there already, by row."""
    held = directory / "about.json"
    if held.is_file() and json.loads(held.read_text()) != about:
        raise ValueError(f"{directory} holds answers of another model or other settings")
    write_json(held, about)
    file = directory / (WHOLE if (directory / WHOLE).is_file() else PARTIAL)
    text = file.read_bytes() if file.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]  # the last line may be torn, within a character too
    if whole != text:
        write_text(file, whole.decode())
    # Not splitlines: JSON leaves some of what that splits at as it is.
    lines = map(json.loads, whole.split(b"\n")[:-1])
    return {line["row"]: line for line in lines}


def _emptied(directory: Path) -> dict[int, dict]:
    write_text(directory / PARTIAL, "")
    return {}


def _line(question: EvalRow, reply: Answer, answerer: TextGenerator) -> dict[str, Any]:
    line = {
        "row": question.number,
        "place": question.place,
        "prompt": answerer.tokenizer.decode(question.prompt),
        "references": list(question.references),
        "answer": reply.text,
        "tokens": reply.tokens,
        "log_probability": reply.chance,
        "ended": reply.ended,
    }
    return line | ({"next": reply.next} if reply.next else {})


def _answered(question: EvalRow, line: Mapping[str, Any]) -> Prediction:
    return Prediction(
        line["answer"],
        question.references,
        question.record,
        question.place,
        tuple((text, chance) for text, chance in line.get("next", ())),
    )


def _written(
    directory: Path,
    metrics: Sequence[Metric],
    lines: Sequence[dict],
    rows: Sequence[Prediction],
) -> dict[str, Figure]:
    """Score rows, and write predictions with their scores and what they come to."""
    scores = per_row(metrics, rows)
    told = (
        line | {"scores": {name: each[i] for name, each in scores.items()}}
        for i, line in enumerate(lines)
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
    write_text(directory / WHOLE, text)  # its scores come anew if it is read again
    found = summarise(metrics, rows)
    figures = {name: vars(figure) for name, figure in found.items()}
    write_json(directory / METRICS, {"rows": len(rows), "metrics": figures})
    (directory / PARTIAL).unlink(missing_ok=True)
    return found


def loss(model: Model, variables: Mapping, loader: Loader, place: Placer) -> float:
    """The mean loss over a loader's rows."""
    loader.restore({**loader.state(), "step": 0})
    sums = [eval_step(model, variables, place(step.batch, parts=False)) for step in loader]
    total, weight = np.array(jax.device_get(sums), np.float64).sum(axis=0)
    return float(total / weight)


def digest(content: Any) -> str:
    """A short name for what answers depend on."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
