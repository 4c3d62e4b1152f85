"""Answers prompts from the terminal or a file, with the model and settings of a config."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxtune.assembly.assemble import Assembly
from jaxtune.data.errors import DataError
from jaxtune.decoding.text import TextGenerator
from jaxtune.display.escapes import visible
from jaxtune.evaluation.compare import tuned_at, tuned_model
from jaxtune.files import write_json
from jaxtune.files.fetched import local
from jaxtune.workdir.directory import claim

ERASED = "\r\033[K"  # moves a terminal's cursor to the start of the line, and erases the line
BATCH = "answers.json"  # file of the answers to prompts that were given as arguments
NEW = "/new"  # typed, it begins a new conversation


@dataclass(frozen=True)
class TypedPrompt:
    """A prompt as the user gave it, and as the model gets it."""

    text: str
    place: str
    tokens: list[int]
    images: np.ndarray | None  # float32[I, S, S, 3]; None if the model takes no pictures


def text_generator(
    assembly: Assembly, workdir: Path, adapter: str | None, base: bool
) -> TextGenerator:
    """Returns a generator for the base, or for the model tuned on it.

    Args:
      assembly: Parts of the config.
      workdir: Run whose export is loaded if `adapter` is None.
      adapter: An adapter or merged checkpoint: a path or a Hub repository.
      base: Loads the untuned base alone.

    Returns:
      A text generator with the weights on the devices.
    """
    loaded = assembly.base() if base else tuned_model(assembly, tuned_at(workdir, adapter))
    return assembly.generator(*loaded)


def typed_prompt(
    assembly: Assembly, text: str, place: str, image: Path | str | None = None
) -> TypedPrompt:
    """Encodes a text, with a picture if the model takes one, as a prompt.

    Args:
      assembly: Parts of the config, whose task or template writes the prompt.
      text: A row as JSON, or the text of the one column that the prompt needs.
      place: Where the text comes from, for error messages.
      image: Path or URL of the picture, if it is not part of the row.

    Returns:
      The prompt with its tokens and pixels.

    Raises:
      DataError: If the text is not such a row, or if a picture is missing or not supported.
    """
    encoder, base = assembly.encoder, assembly.config.model.path
    record = recorded(assembly, text, place)
    if image is not None:
        if encoder.pictures is None:
            raise DataError(f"--image {image}: {base} does not take pictures")
        encoder = replace(encoder, image_root="")  # which is for the pictures that rows name
        record = {**record, encoder.image: os.path.abspath(local(image))}
    elif encoder.pictures and encoder.image not in record:
        raise DataError(f"{place}: {base} needs a picture; pass it with --image")
    tokens = encoder.prompt(record, place)
    return TypedPrompt(text, place, tokens, encoder.pixels(record, place))


def answer(
    generator: TextGenerator,
    task: ModuleType | None,
    prompt: TypedPrompt,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Answers a prompt, and shows the text while it is generated.

    On a terminal, the answer is then shown in the task's own form, if the task has one (`shown`).

    Args:
      generator: Model and decoding settings.
      task: Task of the config, if it names one.
      prompt: Prompt to answer.
      say: Prints a part of the text, without a line break.

    Returns:
      The texts of the prompt and the answer, under "prompt" and "answer".
    """
    generator.check(prompt.tokens, prompt.place)
    parts = []
    for part in generator.stream(prompt.tokens, prompt.images):
        parts.append(part)
        say(for_output(part))
    whole = "".join(parts)
    shown = getattr(task, "shown", None)
    say((_instead(whole, shown) if shown and sys.stdout.isatty() else "") + "\n")
    return {"prompt": prompt.text, "answer": whole}


@dataclass
class Conversation:
    """Typed prompts and their answers; with chat messages, each prompt includes what came before.

    A prompt that is itself a row as JSON, and every prompt of a config without `data.messages`, is
    answered by itself. The text `/new` begins a new conversation.
    """

    assembly: Assembly
    generator: TextGenerator
    image: Path | str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)

    def reply(self, text: str, place: str, say: Callable[[str], None]) -> None:
        """Answers a prompt, and remembers both if the config reads chat messages."""
        column = self.assembly.config.data.messages
        if text.strip() == NEW:
            self.messages.clear()
            say("new conversation\n")
            return
        if not column or text.lstrip().startswith("{"):
            prompt = typed_prompt(self.assembly, text, place, self.image)
            answer(self.generator, self.assembly.task, prompt, say)
            return
        messages = [*self.messages, {"role": "user", "content": text}]
        row = json.dumps({column: messages})
        prompt = typed_prompt(self.assembly, row, place, self.image)
        found = answer(self.generator, self.assembly.task, prompt, say)
        self.messages = [*messages, {"role": "assistant", "content": found["answer"]}]


def for_output(text: str) -> str:
    """Returns a text as standard output gets it: control characters are visible on a terminal.

    Where the output goes to a file or another program, the text stays as it is.
    """
    return visible(text) if sys.stdout.isatty() else text


def _instead(text: str, shown: Callable[[str, bool], str]) -> str:
    """Returns the task's form of an answer, to print over its text, or below it if it is long."""
    short = text.isprintable() and len(text) < shutil.get_terminal_size().columns
    return (ERASED if short else "\n") + shown(visible(text), True)


def recorded(assembly: Assembly, text: str, place: str) -> Mapping[str, Any]:
    """Returns the row that a text stands for: its JSON, or the one column that the prompt needs."""
    if not text.strip():
        raise DataError(f"{place} is empty: expected a text to answer")
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place} begins like JSON but is not valid JSON: {error}") from None
    if messages := assembly.config.data.messages:
        return {messages: [{"role": "user", "content": text}]}
    task = assembly.task
    columns = [getattr(task, "ASK", "")] if task else assembly.encoder.form.asks
    if not columns:
        raise DataError(
            f"{place}: data.prefix is the same for every row, so there is no column to put the "
            "text in; type {} instead, a row without columns (in a shell: '{}')"
        )
    if len(columns) != 1 or not columns[0]:
        known = list(task.COLUMNS) if task else columns
        row = json.dumps(dict.fromkeys(known, "…"), ensure_ascii=False)
        raise DataError(
            f"{place}: the prompt needs several columns; type a row as JSON (in a shell, within "
            f"single quotes): {row}"
        )
    return {columns[0]: text}


def write_answers(workdir: Path, found: list[dict[str, str]]) -> Path:
    """Writes prompts and answers to `BATCH` in the workdir, and returns its path."""
    file = workdir / BATCH
    claim(workdir)
    write_json(file, found)
    return file
