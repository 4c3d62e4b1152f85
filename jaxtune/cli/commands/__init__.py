"""The commands of launch.py, one module each.

A module's `arguments(parser)` adds the command's arguments and sets `run`, the function that runs
it. Importing a command imports nothing heavy; what it needs is imported when it runs.
"""

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

COMMANDS = {
    "train": "tune a model as a config says, or go on with that (the default)",
    "preview": "rows as the step sees them: prefix, suffix, what is scored; and the counts",
    "eval": "held-out rows answered and scored, by the base, by what was tuned, or by both",
    "generate": "prompts answered: one, those of a file, or as you type them",
    "inspect": "what a checkpoint holds, from headers alone: its tree, totals and tokenizer",
    "tokens": "tokenizers side by side: which numbers are one token, tokens a word and a byte",
    "export": "what a run tuned, written for others and verified: its adapter, or the model merged",
    "push": "what a run exported, sent to the Hugging Face Hub",
    "prepare": "a published dataset as the JSON lines that a task reads",
    "config": "every field of a config with its default, or the whole config of a file",
}
DEFAULT = "train"
OVERRIDE = re.compile(r"--config\.[^=]+(=.*)?", re.DOTALL)


class UsageError(ValueError):
    """Command-line arguments that are wrong or do not go together."""


def overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into those of the command and those that change a config field."""
    changes = [each for each in arguments if OVERRIDE.fullmatch(each)]
    return [each for each in arguments if not OVERRIDE.fullmatch(each)], changes


def configured(parser: ArgumentParser, usage: str) -> None:
    """Adds the arguments of a command that reads a config; `usage` ends its usage line."""
    parser.usage = f"{parser.prog} --config FILE [--workdir DIR] [--config.key=value …] {usage}"
    parser.add_argument("--config", required=True, metavar="FILE", help="such as configs/x.py")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="default: runs/NAME")


def config_and_place(options: Namespace) -> tuple[Any, Path]:
    """Returns the config with its overrides applied, and the workdir: by default runs/NAME."""
    from jaxtune.config import load as schema

    found = schema.load(options.config, options.overrides)
    name = Path(options.config.partition(".py:")[0]).stem
    return found, options.workdir or Path("runs") / name
