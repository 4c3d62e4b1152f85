"""Draws inputs from a strategy, counts their outcomes, and finds the smallest input of a defect."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.hostile.outcomes import Outcome, judged

SHRINKING = 15  # seconds for one defect


@dataclass(frozen=True)
class Probe:
    """A class of inputs: how they are drawn, and what is done with each.

    `check` returns if the input was used as it should, and else raises the program's message, or
    `Silent` if the program accepted what it must not. Inputs are plain Python values.
    """

    name: str
    inputs: int  # in a whole campaign
    strategy: SearchStrategy
    check: Callable[[Any], None]
    chunk: int = 250  # inputs drawn from one seed
    patience: float = 20.0  # seconds after which an input counts as a hang


class Found(Exception):
    """The defect that is being shrunk."""


def draw(probe: Probe, number: int, count: int, use: Callable[[Any], None]) -> None:
    """Calls `use` with `count` inputs; the same ones for the same number."""

    @seed(number)
    @_settings(count, Phase.generate)
    @given(probe.strategy)
    def each(value):
        use(value)

    each()


def smallest(probe: Probe, number: int, count: int, signature: str) -> tuple[Any, Outcome] | None:
    """Returns the smallest input found for a defect that the inputs of `number` have."""
    best: tuple[Any, Outcome] | None = None
    until = time.monotonic() + SHRINKING

    @seed(number)
    @_settings(count, Phase.generate, Phase.shrink)
    @given(probe.strategy)
    def each(value):
        nonlocal best
        if best and time.monotonic() > until:
            return
        found = judged(probe.check, value)
        if found.signature == signature:
            if best is None or len(written(value)) <= len(written(best[0])):
                best = value, found
            raise Found

    with contextlib.suppress(BaseException):  # Found itself, or Hypothesis' word that time ran out
        each()
    return best


def _settings(count: int, *phases: Phase) -> settings:
    return settings(
        max_examples=count,
        phases=phases,
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )


def written(value: Any) -> str:
    """Returns an input as text that `read` reads back."""
    return repr(value)


def read(text: str) -> Any:
    """Reads an input that `written` wrote."""
    return eval(text, {"__builtins__": {}, "nan": math.nan, "inf": math.inf})
