"""The generate command: prompts from the terminal or a file, answered as a config says."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxtune import wiring
from jaxtune.answering import Answerer
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.load import load
from jaxtune.config import Config
from jaxtune.data.errors import DataError
from jaxtune.data.prompts import Prompt
from jaxtune.evaluation import task_of
from jaxtune.judge import tuned_at, tuned_variables
from jaxtune.workdir import begun, write_json

BATCH = "answers.json"  # what is written where all prompts are known beforehand


def answerer(
    config: Config, workdir: Path, adapter: str | None, base: bool
) -> tuple[Answerer, Prompt]:
    """The model that answers, and how a prompt is put to it."""
    directory = locate(config.model.path)
    tuned = None if base else tuned_at(workdir, adapter)
    tokenizer = wiring.tokenizer(config, directory, begun(workdir))
    prompt = wiring.prompt(config, tokenizer)
    mesh, given = wiring.mesh(config), config.model
    model, variables = load(
        directory, given.dtype, given.quant, mesh=mesh, attention=given.attention
    )
    if tuned is not None:
        model, variables = tuned_variables(config, model, variables, tuned, mesh)
    return Answerer(model, variables, tokenizer, config.generate, config.seed), prompt


def answer(
    answerer: Answerer, prompt: Prompt, config: Config, texts: Iterable[str], say: Callable
) -> list[dict[str, str]]:
    """Answer one text after the other, as it comes, and show what came of it."""
    found = []
    for number, text in enumerate(texts):
        record = recorded(config, prompt, text, f"prompt {number + 1}")
        tokens = prompt.asked(record, f"prompt {number + 1}")
        parts = []
        for part in answerer.stream(tokens):
            parts.append(part)
            say(part)
        whole = "".join(parts)
        shown = getattr(task_of(config), "shown", None)
        say("\n" + (f"{shown(whole, sys.stdout.isatty())}\n" if shown else ""))
        found.append({"prompt": text, "answer": whole})
    return found


def recorded(config: Config, prompt: Prompt, text: str, place: str) -> Mapping[str, Any]:
    """A row of what was typed: its JSON, or the one column that a prompt fills."""
    if not text.strip():
        raise DataError(f"{place} is empty: a text to answer was expected")
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{place} begins like JSON and is none: {error}") from None
    if config.data.messages:
        return {config.data.messages: [{"role": "user", "content": text}]}
    task = task_of(config)
    columns = [getattr(task, "ASK", "")] if task else prompt.form.asks
    if len(columns) != 1 or not columns[0]:
        known = list(task.COLUMNS) if task else columns
        raise DataError(
            f"{place}: a prompt is made of several columns, so give them as JSON: an object with "
            f"{', '.join(known)}"
        )
    return {columns[0]: text}


def kept(workdir: Path, found: list[dict[str, str]]) -> Path:
    """Write what was answered."""
    file = workdir / BATCH
    write_json(file, found)
    return file
