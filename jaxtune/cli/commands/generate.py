"""`generate`: answers prompts, and prints each answer token by token."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial

from jaxtune.cli import distributed
from jaxtune.cli.commands import config_and_place, configured
from jaxtune.cli.options import filled, path
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import show
from jaxtune.files.fetched import local

TYPED = "the prompt"


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(
        parser,
        "[--prompt TEXT | --file FILE] [--image FILE] [--base | --adapter DIR] "
        f"{distributed.USAGE}",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--base", action="store_true", help="use the untuned base")
    which.add_argument(
        "--adapter",
        type=filled,
        metavar="DIR",
        help="adapter or merged checkpoint to use: a directory or Hub repository "
        "(default: the run's export)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help="a prompt, or a row as JSON")
    prompts.add_argument("--file", type=path, metavar="FILE", help="file with one prompt per line")
    parser.add_argument(
        "--image", type=path, metavar="FILE", help="picture to use with all prompts"
    )
    distributed.arguments(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Answers the given prompts; without any, those typed at the terminal until the input ends."""
    distributed.join(options)
    config, workdir = config_and_place(options, ("export",))
    from jaxtune.assembly.assemble import Assembly
    from jaxtune.cli.chat import (
        Conversation,
        answer,
        for_output,
        text_generator,
        typed_prompt,
        write_answers,
    )
    from jaxtune.workdir import agreement
    from jaxtune.workdir.directory import begun

    say = _say if agreement.first() else _unsaid
    assembly = Assembly.of(config, agreement.of_first(partial(begun, workdir)))
    # Given prompts are checked before the weights are read.
    image = options.image
    texts = agreement.of_first(partial(given, options))
    prompts = [typed_prompt(assembly, text, place, image) for place, text in texts]
    generator = text_generator(assembly, workdir, options.adapter, options.base)
    for prompt in prompts:
        generator.check(prompt.tokens, prompt.place)
    if not prompts:
        conversation = Conversation(assembly, generator, image)
        conversed(lambda text: conversation.reply(text, TYPED, say))
        return 0
    found = []
    try:
        for prompt in prompts:
            if options.file:
                say(for_output(f"> {prompt.text}\n"))
            found.append(answer(generator, assembly.task, prompt, say))
            say("\n" if options.file else "")
    finally:
        if found and agreement.first():
            show(f"answers written to {write_answers(workdir, found)}", sys.stderr)
    return 0


def given(options: Namespace) -> list[tuple[str, str]]:
    """Returns the prompts with their places; an empty list if they are to be typed."""
    if options.prompt is not None:
        return [("--prompt", options.prompt)]
    if options.file is None:
        return []
    file = options.file
    try:
        lines = local(file).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error}") from None
    found = [(f"{file}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{file} contains no prompts: expected one per line")
    return found


def conversed(answer: Callable[[str], object]) -> None:
    """Answers typed prompts; on a terminal, an error in one is printed and the next is read.

    Of several processes, the first one reads what is typed for all.
    """
    from jaxtune.workdir import agreement

    live, lines = agreement.of_first(sys.stdin.isatty), typed()
    for text in iter(lambda: agreement.of_first(partial(next, lines, None)), None):
        try:
            answer(text)
        except ValueError as error:
            if not live:
                raise
            if agreement.first():
                show(f"error: {error}", sys.stderr)


def typed() -> Iterator[str]:
    """Yields the lines of standard input that are not blank; on a terminal, prompts with `> `."""
    ask = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(ask)
        except EOFError:
            return
        if text.strip():
            yield text


def _unsaid(text: str) -> None:
    """Prints nothing, in all processes but the first."""


def _say(text: str) -> None:
    """Prints part of an answer without waiting for the rest."""
    sys.stdout.write(text)
    sys.stdout.flush()
