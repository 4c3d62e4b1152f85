"""Progress of a run: a status line that is redrawn on a terminal, or occasional lines elsewhere."""

import sys
import time
from typing import TextIO

from jaxtune.display.escapes import visible

CLEAR = "\r\033[K"
EVERY = 0.2  # least seconds between two drawings of the line


class Progress:
    """A status line that is redrawn in place on a terminal, with lasting texts printed above it.

    Control characters in these texts are made visible.

    `verbose` asks those who report to it for details, such as a table of every leaf.
    """

    def __init__(self, out: TextIO | None = None, verbose: bool = False):
        self._out, self.verbose = out or sys.stdout, verbose
        self._drawn, self._last = False, 0.0

    @property
    def live(self) -> bool:
        """Whether the output is a terminal, so that a line can be redrawn."""
        return self._out.isatty()

    def draw(self, text: str) -> None:
        """Redraws the status line, but at most every `EVERY` seconds and only on a terminal."""
        now = time.monotonic()
        if self.live and now - self._last >= EVERY:
            self._out.write(CLEAR + visible(text))
            self._out.flush()
            self._drawn, self._last = True, now

    def say(self, text: str = "") -> None:
        """Prints a text that stays, in place of the status line."""
        self._out.write((CLEAR if self._drawn else "") + visible(text) + "\n")
        self._out.flush()
        self._drawn, self._last = False, 0.0


class Quiet(Progress):
    """Progress that prints nothing, for all processes but the first."""

    def draw(self, text: str) -> None:
        """Does nothing."""

    def say(self, text: str = "") -> None:
        """Does nothing."""


def duration(seconds: float) -> str:
    """Formats seconds as `1:02:03`, or as `2:03` below an hour."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
