"""`generate`: prompts answered, token by token as they come."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path

from jaxtune.commands import config_and_place, configured


def arguments(parser: ArgumentParser) -> None:
    """What it takes."""
    configured(parser)
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
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Answer; without a prompt or file, what is typed, until the input ends."""
    config, workdir = config_and_place(options)
    from jaxtune.converse import answer, answerer, kept

    # What may be wrong with prompts that are there already comes up before the weights are read.
    texts = given(options)
    ready, prompt = answerer(config, workdir, options.adapter, options.base)

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    found = answer(ready, prompt, config, typed() if texts is None else texts, say)
    if texts is not None:
        print(f"written to {kept(workdir, found)}", file=sys.stderr)
    return 0


def given(options: Namespace) -> list[str] | None:
    """The prompts, if they are not to be typed."""
    if options.prompt is not None:
        return [options.prompt]
    if options.file is None:
        return None
    lines = options.file.expanduser().read_text(encoding="utf-8").splitlines()
    found = [line for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{options.file} holds no prompt: a line each was expected")
    return found


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
