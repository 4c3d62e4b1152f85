"""Runs commands one after another in a process that joins others once; started by `processes`.

    python -m tests.session '[["train", …], ["eval", …]]' [--unreadable STEP] --coordinator …

With --unreadable, this process cannot read the checkpoint of a step.
"""

import argparse
import json
from collections.abc import Sequence

from jaxtune.cli import distributed, main
from jaxtune.runs import signals
from tests import sharing

BEGINS = "== "  # first characters of the line before the output of a command


def run(commands: Sequence[Sequence[str]], joining: Sequence[str]) -> int:
    """Returns the exit code of the first command that fails, or 0."""
    leave, distributed.leave = distributed.leave, lambda: None
    for number, command in enumerate(commands):
        print(f"{BEGINS}{command[0]}", flush=True)
        if code := main.main([*command, *([] if number else joining)]):
            return code
    leave()
    return 0


def refuse_to_read(step: int) -> None:
    """Makes reading a checkpoint fail as it does where a disk is at fault."""
    from jaxtune.workdir.checkpoints import Checkpoints

    read = Checkpoints._state

    def state(self, number, *more):
        if number == step:
            raise OSError(5, "Input/output error")
        return read(self, number, *more)

    Checkpoints._state = state


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("commands", type=json.loads)
    parser.add_argument("--unreadable", type=int)
    options, rest = parser.parse_known_args()
    if options.unreadable is not None:
        refuse_to_read(options.unreadable)
    sharing.share()
    sharing.keep_output_apart()
    if failed := run(options.commands, rest):
        signals.end(failed)
