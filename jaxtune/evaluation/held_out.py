"""Generates answers to held-out rows, scores them by the task's metrics, and computes the loss.

Predictions are written to a file as they are made, so that an interrupted evaluation can resume.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxtune import tasks
from jaxtune.assembly.placer import Placer
from jaxtune.config.training_sections import Data
from jaxtune.data import images
from jaxtune.data.batches import Batch
from jaxtune.data.errors import RowError, TooLong, column
from jaxtune.data.examples import RowEncoder
from jaxtune.data.images import Reference
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source
from jaxtune.decoding.text import Answer, TextGenerator
from jaxtune.display.columns import few
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress
from jaxtune.files import NUMBER, misfit, read_json, write_json, write_text
from jaxtune.metrics import Metric, Prediction, per_row, summarise
from jaxtune.metrics.intervals import Figure
from jaxtune.models.paligemma import Model
from jaxtune.training.objectives import CROSS_ENTROPY, Objective
from jaxtune.training.step import eval_sums
from jaxtune.workdir import agreement

# From a batch on the devices to sums over it: "loss", "weight" and metrics, each of a model or of M
# members.
Evaluate = Callable[[Batch], Mapping[str, jax.Array]]

CHUNK = 32  # rows answered between two writes, rounded down to whole batches (at least one)
# Shape of a line of predictions, as `files.misfit` checks it.
LINE = {
    "row": int,
    "place": str,
    "prompt": str,
    "references": [str],
    "answer": str,
    "tokens": int,
    "log_probability": NUMBER,
    "ended": bool,
    "next?": [[(str, *NUMBER)]],
}
PARTIAL, WHOLE, METRICS = "predictions.partial.jsonl", "predictions.jsonl", "metrics.json"


class LossError(UserError):
    """A held-out loss that is not finite."""


@dataclass(frozen=True)
class EvalRow:
    """A held-out row, with its tokenised prompt and the references for its answer."""

    number: int  # index in its source
    place: str
    record: Mapping[str, Any]
    prompt: list[int]
    references: tuple[str, ...]
    pictures: tuple[Reference, ...] = ()
    side: int = 0  # of a resized picture, in pixels; 0 if the model takes none


def eval_rows(
    data: Data, source: Source, encoder: RowEncoder, task: ModuleType | None
) -> list[EvalRow]:
    """Returns the rows of a source with their prompts and references.

    Rows that are too long or malformed are left out if `data.too_long` or `data.bad_rows` is
    "skip", as in a survey, and otherwise raise their `RowError`.

    Args:
      data: Settings of the data.
      source: The held-out rows.
      encoder: Encodes a row into an example.
      task: Gives the references; without one, the decoded completion is the only reference.

    Returns:
      The rows, of which there is at least one.
    """
    found = []
    for number in range(len(source)):
        place = source.place(number)
        try:
            record = renamed(source[number], data.columns, place)
            found.append(eval_row(number, record, place, encoder, task))
        except RowError as error:
            long = isinstance(error, TooLong)
            if (data.too_long if long else data.bad_rows) != "skip":
                raise
    if not found:
        raise UserError("no held-out rows to answer")
    return found


def renamed(record: Mapping, columns: Sequence[tuple[str, str]], place: str) -> Mapping:
    """Returns a row that has its columns by the names that the task reads, too."""
    return {**record, **{known: column(record, theirs, place) for known, theirs in columns}}


def eval_row(
    number: int,
    record: Mapping[str, Any],
    place: str,
    encoder: RowEncoder,
    task: ModuleType | None,
) -> EvalRow:
    """Returns a row with its prompt and references; the arguments are those of `eval_rows`."""
    example = encoder(record, place)
    scored = np.flatnonzero(example.scored)
    # In a conversation, the last scored turn is the completion and all before it the prompt.
    first = scored[-1] - np.argmin(example.scored[: scored[-1] + 1][::-1]) + 1
    if task:
        references = tasks.references(task, record, place)
    else:
        tokens = example.tokens[first : scored[-1] + 1]
        references = (encoder.tokenizer.decode(tokens.tolist(), continues=True).strip(),)
    side = encoder.pictures.size if encoder.pictures else 0
    before = example.tokens[:first].tolist()
    return EvalRow(number, place, record, before, references, example.images, side)


def evaluate(
    generator: TextGenerator,
    rows: Sequence[EvalRow],
    task: ModuleType | None,
    metrics: Sequence[Metric],
    directory: Path,
    progress: Progress,
    about: Mapping[str, Any] | None = None,
    between: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Figure], list[Prediction]]:
    """Generates an answer to every row and scores the answers.

    Args:
      generator: Model, tokenizer and settings that answer prompts.
      rows: The rows to answer.
      task: Its `NEXT` says how many likeliest first tokens to record with each answer, if any.
      metrics: Metrics to score the answers by.
      directory: Where predictions and scores are written.
      progress: Display for the count of answered rows.
      about: Everything that the answers depend on. Answers in `directory` with an equal `about` are
        reused, and those with another raise a ValueError. Without it, partial answers are dropped
        and every row is answered.
      between: Called before each chunk of rows.

    Returns:
      The figure of each metric, and a prediction per row.

    All processes must call this. They answer each row together; the first one reads and writes.
    """
    for row in rows:
        generator.check(row.prompt, row.place)
    begun = partial(_begun, directory, about) if about else partial(_emptied, directory)
    done = {line["row"]: line for line in agreement.of_first(begun)}
    likeliest = getattr(task, "NEXT", 0)
    batch = generator.settings.batch
    size = batch * max(1, CHUNK // batch)
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        # The rows of a batch affect each other's last digits: a chunk is reused or redone whole.
        if all(row.number in done for row in chunk):
            continue
        between()
        progress.draw(f"answered {start:,} of {len(rows):,} rows")
        prompts = [row.prompt for row in chunk]
        answers = generator.answers(prompts, likeliest, pictures_of(chunk))
        lines = [_line(row, answer, generator) for row, answer in zip(chunk, answers, strict=True)]
        if agreement.first():
            with (directory / PARTIAL).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        done |= {line["row"]: line for line in lines}
    lines = [done[row.number] for row in rows]
    predictions = [_prediction(row, line) for row, line in zip(rows, lines, strict=True)]
    figures = agreement.of_first(partial(_written, directory, metrics, lines, predictions))
    return {name: Figure(**figure) for name, figure in figures.items()}, predictions


def pictures_of(rows: Sequence[EvalRow]) -> list[np.ndarray] | None:
    """Reads the pictures of each row, float32[I, S, S, 3]; returns None if no row has any."""
    if not any(row.pictures for row in rows):
        return None
    return [
        np.stack([images.read(each, row.side, row.place) for each in row.pictures]) for row in rows
    ]


def _begun(directory: Path, about: Mapping[str, Any]) -> list[dict]:
    """Returns the predictions already in a directory; drops a torn last line."""
    held = directory / "about.json"
    if held.exists() and read_json(held, dict) != about:
        raise UserError(
            f"{directory} contains answers of another model or other settings; remove it first"
        )
    write_json(held, about)
    file = directory / (WHOLE if (directory / WHOLE).is_file() else PARTIAL)
    text = file.read_bytes() if file.is_file() else b""
    whole = text[: text.rfind(b"\n") + 1]  # the last line may be torn, even within a character
    if whole != text:
        write_text(file, whole.decode())
    # Split as bytes: `str.splitlines` would also split at separators that JSON does not escape.
    lines = enumerate(whole.split(b"\n")[:-1], 1)
    return [_answered(text, f"{file}:{number}") for number, text in lines]


def _answered(text: bytes, place: str) -> dict[str, Any]:
    """Parses a line of predictions; raises ValueError if `evaluate` has not written it."""
    try:
        line = json.loads(text)
        problem = misfit(line, LINE)
    except (ValueError, RecursionError) as error:
        problem = f"not valid JSON: {error}"
    if problem:
        raise UserError(
            f"{place} is no prediction ({problem}); remove {Path(place).parent} to answer its rows "
            "again"
        )
    return line


def _emptied(directory: Path) -> list[dict]:
    write_text(directory / PARTIAL, "")
    return []


def _line(row: EvalRow, answer: Answer, generator: TextGenerator) -> dict[str, Any]:
    line = {
        "row": row.number,
        "place": row.place,
        "prompt": generator.tokenizer.decode(row.prompt),
        "references": list(row.references),
        "answer": answer.text,
        "tokens": answer.tokens,
        "log_probability": answer.log_prob,
        "ended": answer.ended,
    }
    return line | ({"next": answer.next} if answer.next else {})


def _prediction(row: EvalRow, line: Mapping[str, Any]) -> Prediction:
    return Prediction(
        line["answer"],
        row.references,
        row.record,
        row.place,
        tuple((text, log_prob) for text, log_prob in line.get("next", ())),
    )


def _written(
    directory: Path,
    metrics: Sequence[Metric],
    lines: Sequence[dict],
    rows: Sequence[Prediction],
) -> dict[str, dict]:
    """Writes the predictions with their scores, and the figure of each metric; returns these."""
    scores = per_row(metrics, rows)
    told = (
        line | {"scores": {name: each[i] for name, each in scores.items()}}
        for i, line in enumerate(lines)
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in told)
    write_text(directory / WHOLE, text)  # scores are recomputed when the file is resumed from
    figures = {name: vars(figure) for name, figure in summarise(metrics, rows).items()}
    write_json(directory / METRICS, {"rows": len(rows), "metrics": figures})
    (directory / PARTIAL).unlink(missing_ok=True)
    return figures


def means(
    model: Model,
    variables: Mapping,
    loader: Loader,
    placer: Placer,
    objective: Objective = CROSS_ENTROPY,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Returns the weighted means of the loss and the objective's metrics over a loader's batches.

    The cross-entropy is the mean over scored tokens, in nats. `between` is called before each
    batch. Raises LossError if the loss of any batch is not finite.
    """

    def evaluate(batch: Batch) -> Mapping[str, jax.Array]:
        return eval_sums(model, variables, batch, objective)

    return Sums.of(evaluate, loader, placer, between).means()


@dataclass(frozen=True)
class Sums:
    """Sums over each of N held-out batches, under the weights of one model or of M members."""

    sums: Mapping[str, np.ndarray]  # float64[N] or [N, M], by name: "loss", "weight", metrics
    places: list[list[str]]  # of the rows of each batch

    @classmethod
    def of(
        cls,
        evaluate: Evaluate,
        loader: Loader,
        placer: Placer,
        between: Callable[[], None] = lambda: None,
    ) -> "Sums":
        """Returns the sums over all batches of a loader, from its start; see `means`."""
        loader.restore({**loader.state(), "step": 0})
        found, places = [], []
        for step in loader:
            between()
            found.append(evaluate(placer(step.batch, parts=False)))
            places.append(step.places)
        found = jax.device_get(found)
        return cls(
            {name: np.array([each[name] for each in found], np.float64) for name in found[0]},
            places,
        )

    def means(self, member: int | None = None) -> dict[str, float]:
        """Returns the weighted means of the loss and the metrics.

        Raises LossError if the loss of any batch is not finite.
        """
        sums = {
            name: each if member is None else each[:, member] for name, each in self.sums.items()
        }
        for rows, loss in zip(self.places, sums["loss"], strict=True):
            if not np.isfinite(loss):
                raise LossError(
                    f"the held-out loss is {loss:g} for the rows {few(rows, len(rows))}"
                )
        weight = sums.pop("weight").sum()
        return {name: float(each.sum() / weight) for name, each in sums.items()}


def digest(content: Any) -> str:
    """Returns the first 8 hex digits of the SHA-256 of JSON-serialised content."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
