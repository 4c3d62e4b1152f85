"""Entry point of the command line, where a signal ends the program from the first import on."""

import signal
from typing import NoReturn


def start(program: str = "jaxtune") -> NoReturn:
    """Runs a command, as `main.console` does.

    Python raises KeyboardInterrupt within imports, and prints where it was raised. Until `console`
    has its own way, the system ends the process instead.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from jaxtune.cli.main import console

    console(program)
