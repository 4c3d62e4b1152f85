"""A line at the terminal that says how far a run is; a line now and then where there is none."""

import sys
import time
from typing import TextIO

CLEAR = "\r\033[K"
EVERY = 0.2  # seconds between two drawings


class Progress:
    """One line, drawn over and over on a terminal; texts between are printed above it."""

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout
        self._drawn, self._last = False, 0.0

    @property
    def live(self) -> bool:
        """Whether lines can be drawn over."""
        return self._out.isatty()

    def draw(self, text: str) -> None:
        """Replace the line, unless that was done just now or there is no terminal."""
        now = time.monotonic()
        if self.live and now - self._last >= EVERY:
            self._out.write(CLEAR + text)
            self._out.flush()
            self._drawn, self._last = True, now

    def say(self, text: str = "") -> None:
        """Print lines that stay."""
        self._out.write((CLEAR if self._drawn else "") + text + "\n")
        self._out.flush()
        self._drawn, self._last = False, 0.0


class Quiet(Progress):
    """Says nothing, as all processes but the first do."""

    def draw(self, text: str) -> None:
        """Nothing."""

    def say(self, text: str = "") -> None:
        """Nothing."""


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
