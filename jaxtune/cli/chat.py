"""The generate command: prompts from the terminal or a file, answered as a config says."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxtune.assembly.assemble import Assembly
from jaxtune.data.errors import DataError
from jaxtune.decoding.text import TextGenerator
from jaxtune.evaluation.compare import tuned_at, tuned_variables
from jaxtune.files import write_json

ERASED = "\r\033[K"  # back to where a terminal's line begins, and none of it left
BATCH = "answers.json"  # what is written where all prompts are known beforehand


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt as it was given and as the model sees it."""

    text: str
    place: str
    tokens: list[int]
    images: np.ndarray | None  # those of its pictures


def text_generator(
    assembly: Assembly, workdir: Path, adapter: str | None, base: bool
) -> TextGenerator:
    """The base, the base with an adapter, or the merged checkpoint, ready to answer."""
    tuned = None if base else tuned_at(workdir, adapter)
    model, variables = assembly.base()
    if tuned is not None:
        model, variables = tuned_variables(assembly, model, variables, tuned)
    return assembly.generator(model, variables)


def typed_prompt(
    assembly: Assembly, text: str, place: str, image: Path | None = None
) -> TypedPrompt:
    """A text as a prompt, with a picture if its model wants one."""
    encoder, base = assembly.encoder, assembly.config.model.path
    record = recorded(assembly, text, place)
    if image is not None:
        if encoder.pictures is None:
            raise DataError(f"--image {image}: {base} sees no pictures")
        record = {**record, encoder.image: os.path.abspath(image)}
    elif encoder.pictures and encoder.image not in record:
        raise DataError(f"{place}: {base} looks at a picture; give it with --image")
    tokens = encoder.prompt(record, place)
    return TypedPrompt(text, place, tokens, encoder.pixels(record, place))


def answer(
    generator: TextGenerator,
    task: ModuleType | None,
    prompt: TypedPrompt,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Answer a prompt, and show what comes of it as it comes."""
    generator.check(prompt.tokens, prompt.place)
    parts = []
    for part in generator.stream(prompt.tokens, prompt.images):
        parts.append(part)
        say(part)
    whole = "".join(parts)
    shown = getattr(task, "shown", None)
    say((_instead(whole, shown) if shown and sys.stdout.isatty() else "") + "\n")
    return {"prompt": prompt.text, "answer": whole}


def _instead(said: str, shown: Callable[[str, bool], str]) -> str:
    """An answer as its task shows it, in place of what was said, or below where that is long."""
    short = said.isprintable() and len(said) < shutil.get_terminal_size().columns
    return (ERASED if short else "\n") + shown(said, True)


def recorded(assembly: Assembly, text: str, place: str) -> Mapping[str, Any]:
    """A row of what was typed: its JSON, or the one column that a prompt fills."""
    if not text.strip():
        raise DataError(f"{place} is empty: a text to answer was expected")
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{place} begins like JSON and is none: {error}") from None
    if messages := assembly.config.data.messages:
        return {messages: [{"role": "user", "content": text}]}
    task = assembly.task
    columns = [getattr(task, "ASK", "")] if task else assembly.encoder.form.asks
    if not columns:
        raise DataError(f"{place}: data.prefix has no column that a text could fill; give {{}}")
    if len(columns) != 1 or not columns[0]:
        known = list(task.COLUMNS) if task else columns
        raise DataError(
            f"{place}: a prompt is made of several columns, so give them as JSON: an object with "
            f"{', '.join(known)}"
        )
    return {columns[0]: text}


def write_answers(workdir: Path, found: list[dict[str, str]]) -> Path:
    """Write what was answered."""
    file = workdir / BATCH
    write_json(file, found)
    return file
