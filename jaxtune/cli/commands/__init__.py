"""The commands of launch.py, one module each.

A module's `arguments(parser)` adds the command's arguments and sets `run`, the function that runs
it. Importing a command imports nothing heavy; what it needs is imported when it runs.
"""

import contextlib
import re
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtune.cli.options import filled, path
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import show

COMMANDS = {
    "train": "fine-tune a model from a config, or resume the run (the default command)",
    "plan": "compile a run's programs without its weights; report memory, work and what would fit",
    "sweep": "train a config with many overrides, on one machine or several, and rank the trials",
    "preview": "show tokenised rows with their scored tokens marked, and count all rows",
    "eval": "generate and score answers to held-out rows with the base, the tuned model, or both",
    "generate": "generate answers to one prompt, a file of prompts, or prompts that you type",
    "inspect": "show the leaves, sizes and tokenizer of a checkpoint, read from its headers",
    "tokens": "compare tokenizers: integers that are a single token, tokens per word and per byte",
    "export": "export a run's adapter or a merged checkpoint, and verify it",
    "push": "push an exported adapter or checkpoint to the Hugging Face Hub",
    "prepare": "convert a published dataset to the JSON lines that a task reads",
    "devices": "show the devices that every process sees, and prove that they reach each other",
    "config": "list every config field with its default, or print the resolved config of a file",
}
DEMO = "--config configs/palette_demo.py"
# The examples that end a command's --help.
EXAMPLES = {
    "train": (DEMO, f"{DEMO} --workdir runs/quick --config.optim.lr=1e-3"),
    "plan": (f"plan {DEMO} --fit", f"plan {DEMO} --target t4"),
    "sweep": (
        f"sweep {DEMO} --sweep sweeps/palette.py --dry-run",
        f"sweep {DEMO} --sweep sweeps/palette.py --workdir runs/palette-sweep",
    ),
    "preview": (f"preview {DEMO}", f"preview {DEMO} --config.batch.packing=True"),
    "eval": (f"eval {DEMO}", f"eval {DEMO} --both"),
    "generate": (f'generate {DEMO} --prompt "a stormy sea"', f"generate {DEMO} --file themes.txt"),
    "inspect": ("inspect google/gemma-3-270m", "inspect configs/tiny/base --quant=nf4-double,int8"),
    "tokens": ("tokens configs/tiny/base", "tokens Qwen/Qwen3-8B google/gemma-3-1b-pt"),
    "export": (f"export {DEMO} --merged float16", f"export {DEMO} --step last --verify=reference"),
    "push": ("push runs/x/export/adapter me/price", "push runs/x/export/adapter price --public"),
    "prepare": (
        "prepare totto totto_train_data.jsonl data/totto/train.jsonl",
        "prepare totto GEM/totto val.jsonl --revision refs/convert/parquet --split validation",
    ),
    "devices": ("devices --expect 8", "devices --expect 16 --distributed"),
    "config": ("config optim", f"config {DEMO} --config.optim.lr=1e-3"),
}
DEFAULT = "train"
OVERRIDE = re.compile(r"--config\.[^=]+(=.*)?", re.DOTALL)


class UsageError(UserError):
    """Command-line arguments that are invalid or cannot be combined."""


def overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into those of the command and those that change a config field."""
    changes = [each for each in arguments if OVERRIDE.fullmatch(each)]
    return [each for each in arguments if not OVERRIDE.fullmatch(each)], changes


def configured(parser: ArgumentParser, usage: str) -> None:
    """Adds the arguments of a command that reads a config; `usage` ends its usage line."""
    parser.usage = f"{parser.prog} --config FILE [--workdir DIR] [--config.key=value …] {usage}"
    parser.add_argument(
        "--config",
        required=True,
        type=filled,
        metavar="FILE",
        help="config file, such as configs/x.py",
    )
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        help="directory of the run, or its URL in an object store (default: runs/NAME for "
        "configs/NAME.py)",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="use a workdir in an object store although its last user may still be at work",
    )


def config_and_place(options: Namespace, parts: Sequence[str] | None = ()) -> tuple[Any, Path]:
    """Returns the config with its overrides applied, and the workdir: by default runs/NAME.

    Both are also kept in `options`, where error messages look for what names a file.

    Args:
      options: The options of the command.
      parts: Folders of a remote workdir that the command reads, which are brought down. None leaves
        all to the run, which first takes the lease of the workdir.

    Raises:
      WorkdirError: If the workdir is a directory of something else.
    """
    from jaxtune.config import load as schema

    options.settings = schema.load(options.config, options.overrides)
    name = Path(options.config.partition(".py:")[0]).stem
    place = options.workdir or Path("runs") / name
    options.workdir = opened_workdir(place, options.take_over, parts)
    return options.settings, options.workdir


@contextlib.contextmanager
def uploading() -> Iterator[None]:
    """Uploads what a command has written to remote workdirs, also if it fails."""
    try:
        yield
    finally:
        mirrors = sys.modules.get("jaxtune.workdir.mirror")  # else no workdir is in use
        if mirrors and mirrors.mirrors():
            from jaxtune.workdir.uploads import upload_all

            upload_all(failed=sys.exc_info()[0] is not None)


def opened_workdir(
    place: str | Path, take_over: bool = False, parts: Sequence[str] | None = ()
) -> Path:
    """Returns the local directory of a workdir; raises WorkdirError if it is something else's.

    For `parts`, see `config_and_place`.
    """
    from jaxtune.workdir.directory import refuse_foreign
    from jaxtune.workdir.mirror import bring, local_workdir

    workdir = local_workdir(place, take_over)
    refuse_foreign(workdir)
    for line in bring(workdir, parts) if parts is not None else ():
        show(line, sys.stderr)
    return workdir
