"""Progress of runs: status lines that are redrawn on a terminal, or occasional lines elsewhere."""

import shutil
import sys
import time
from typing import TextIO

from jaxtune.display.escapes import visible

CLEAR, UP = "\r\033[K", "\033[A"
EVERY = 0.2  # least seconds between two drawings of the lines


class Progress:
    """Status lines that are redrawn in place on a terminal, with lasting texts printed above them.

    Control characters in these texts are made visible.

    `verbose` asks those who report to it for details, such as a table of every leaf.
    """

    def __init__(self, out: TextIO | None = None, verbose: bool = False):
        self._out, self.verbose = out or sys.stdout, verbose
        self._drawn, self._last = 0, 0.0  # lines that are drawn, and when they were

    @property
    def live(self) -> bool:
        """Whether the output is a terminal, so that a line can be redrawn."""
        return self._out.isatty()

    def draw(self, *lines: str) -> None:
        """Redraws the status lines, but at most every `EVERY` seconds and only on a terminal.

        Several lines are cut to the terminal's width and height.
        """
        now = time.monotonic()
        if self.live and now - self._last >= EVERY:
            if len(lines) > 1:
                columns, rows = shutil.get_terminal_size()
                lines = tuple(line[: columns - 1] for line in lines[: rows - 1])
            self._out.write(self._clear() + "\n".join(map(visible, lines)))
            self._out.flush()
            self._drawn, self._last = len(lines), now

    def say(self, text: str = "") -> None:
        """Prints a text that stays, in place of the status lines."""
        self._out.write((self._clear() if self._drawn else "") + visible(text) + "\n")
        self._out.flush()
        self._drawn, self._last = 0, 0.0

    def _clear(self) -> str:
        """Returns what removes the lines that are drawn."""
        return CLEAR + (UP + CLEAR) * max(0, self._drawn - 1)


class Quiet(Progress):
    """Progress that prints nothing, for all processes but the first."""

    def draw(self, *lines: str) -> None:
        """Does nothing."""

    def say(self, text: str = "") -> None:
        """Does nothing."""


def duration(seconds: float) -> str:
    """Formats seconds as `1:02:03`, or as `2:03` below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
