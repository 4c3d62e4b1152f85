"""`generate`: prompts answered, token by token as they come."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jaxtune.cli.commands import config_and_place, configured

TYPED = "the prompt"


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    configured(parser, "[--prompt TEXT | --file FILE] [--image FILE] [--base | --adapter DIR]")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base", action="store_true", help="ask the untuned base")
    which.add_argument(
        "--adapter",
        metavar="DIR",
        help="ask with this adapter or merged checkpoint, a directory or Hub repository "
        "(default: what the run exported)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="one prompt, or a row as JSON")
    prompts.add_argument("--file", type=Path, metavar="FILE", help="a prompt a line")
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="the picture that all prompts are about"
    )
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Answer; without a prompt or file, what is typed, until the input ends."""
    config, workdir = config_and_place(options)
    from jaxtune.assembly.assemble import Assembly
    from jaxtune.cli.chat import answer, text_generator, typed_prompt, write_answers
    from jaxtune.workdir.directory import begun

    workdir = workdir.expanduser()
    assembly = Assembly.of(config, begun(workdir))
    # What is wrong with prompts that are there already comes up before the weights are read.
    image = options.image
    prompts = [typed_prompt(assembly, text, place, image) for place, text in given(options)]
    generator = text_generator(assembly, workdir, options.adapter, options.base)
    for prompt in prompts:
        generator.check(prompt.tokens, prompt.place)
    if not prompts:
        typed = partial(typed_prompt, assembly, place=TYPED, image=image)
        conversed(lambda text: answer(generator, assembly.task, typed(text), say))
        return 0
    found = []
    try:
        for prompt in prompts:
            found.append(answer(generator, assembly.task, prompt, say))
    finally:
        if found:
            print(f"written to {write_answers(workdir, found)}", file=sys.stderr)
    return 0


def given(options: Namespace) -> list[tuple[str, str]]:
    """The prompts and where they stand; none if they are to be typed."""
    if options.prompt is not None:
        return [("--prompt", options.prompt)]
    if options.file is None:
        return []
    file = options.file.expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}") from None
    found = [(f"{file}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ValueError(f"{file} holds no prompt: a line each was expected")
    return found


def conversed(answer: Callable[[str], object]) -> None:
    """Answer what is typed; on a terminal, what was mistyped ends nothing."""
    for text in typed():
        try:
            answer(text)
        except ValueError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr)


def typed() -> Iterator[str]:
    """A prompt a line, asked for on a terminal."""
    ask = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(ask)
        except EOFError:
            return
        if text.strip():
            yield text


def say(text: str) -> None:
    """Print a part of an answer at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
