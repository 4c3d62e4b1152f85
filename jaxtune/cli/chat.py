"""The generate command: prompts from the terminal or a file, answered as a config says."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxtune.assembly import wiring
from jaxtune.checkpoint.hub import locate
from jaxtune.config.schema import Config
from jaxtune.data.errors import DataError
from jaxtune.data.examples import Prompt
from jaxtune.decoding.text import TextGenerator
from jaxtune.evaluation.compare import tuned_at, tuned_variables
from jaxtune.evaluation.held_out import task_of
from jaxtune.files import write_json
from jaxtune.workdir.directory import begun

ERASED = "\r\033[K"  # back to where a terminal's line begins, and none of it left
BATCH = "answers.json"  # what is written where all prompts are known beforehand


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt as it was given and as the model sees it."""

    text: str
    place: str
    tokens: list[int]
    images: np.ndarray | None  # those of its pictures


def prompting(config: Config, workdir: Path) -> Prompt:
    """How a text becomes a prompt; no weight is read for it."""
    directory = locate(config.model.path)
    tokenizer = wiring.tokenizer(config, directory, begun(workdir))
    return wiring.prompt(config, tokenizer, wiring.pictures(directory))


def answerer(
    config: Config, workdir: Path, prompt: Prompt, adapter: str | None, base: bool
) -> TextGenerator:
    """The model that answers."""
    tuned = None if base else tuned_at(workdir, adapter)
    mesh = wiring.mesh(config)
    model, variables = wiring.base(config, locate(config.model.path), mesh)
    if tuned is not None:
        model, variables = tuned_variables(config, model, variables, tuned, mesh)
    return TextGenerator(model, variables, prompt.tokenizer, config.generate, config.seed)


def asked(
    config: Config, prompt: Prompt, text: str, place: str, image: Path | None = None
) -> TypedPrompt:
    """A text as a prompt, with a picture if its model wants one."""
    record = recorded(config, prompt, text, place)
    if image is not None:
        if prompt.pictures is None:
            raise DataError(f"--image {image}: {config.model.path} sees no pictures")
        record = {**record, prompt.image: os.path.abspath(image)}
    elif prompt.pictures and prompt.image not in record:
        raise DataError(f"{place}: {config.model.path} looks at a picture; give it with --image")
    return TypedPrompt(text, place, prompt.asked(record, place), prompt.seen(record, place))


def answer(
    answerer: TextGenerator, config: Config, asked: TypedPrompt, say: Callable[[str], None]
) -> dict[str, str]:
    """Answer a prompt, and show what comes of it as it comes."""
    answerer.check(asked.tokens, asked.place)
    parts = []
    for part in answerer.stream(asked.tokens, asked.images):
        parts.append(part)
        say(part)
    whole = "".join(parts)
    shown = getattr(task_of(config), "shown", None)
    say((_instead(whole, shown) if shown and sys.stdout.isatty() else "") + "\n")
    return {"prompt": asked.text, "answer": whole}


def _instead(said: str, shown: Callable[[str, bool], str]) -> str:
    """An answer as its task shows it, in place of what was said, or below where that is long."""
    short = said.isprintable() and len(said) < shutil.get_terminal_size().columns
    return (ERASED if short else "\n") + shown(said, True)


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
    if not columns:
        raise DataError(f"{place}: data.prefix has no column that a text could fill; give {{}}")
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
