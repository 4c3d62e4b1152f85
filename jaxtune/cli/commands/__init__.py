"""The commands of launch.py, one file each: `arguments(parser)` says what it takes and runs.

Importing a command imports nothing heavy; what it works with is imported when it runs.
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
    """Arguments that make no command."""


def overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments without those that change a config, and these."""
    changes = [each for each in arguments if OVERRIDE.fullmatch(each)]
    return [each for each in arguments if not OVERRIDE.fullmatch(each)], changes


def configured(parser: ArgumentParser, usage: str) -> None:
    """The arguments of a command that reads a config, and what more its usage tells."""
    parser.usage = f"{parser.prog} --config FILE [--workdir DIR] [--config.key=value …] {usage}"
    parser.add_argument("--config", required=True, metavar="FILE", help="such as configs/x.py")
    parser.add_argument("--workdir", type=Path, metavar="DIR", help="default: runs/NAME")


def config_and_place(options: Namespace) -> tuple[Any, Path]:
    """The config that is meant, and the run's directory."""
    from jaxtune.config import load as schema

    found = schema.load(options.config, options.overrides)
    name = Path(options.config.partition(".py:")[0]).stem
    return found, options.workdir or Path("runs") / name
