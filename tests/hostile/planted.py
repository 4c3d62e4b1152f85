"""Classes with planted defects, by which the suite checks that the campaign finds them."""

import os
import time

from hypothesis import strategies as st

from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent
from tests.hostile.world import World


def probes(_: World) -> list[Probe]:
    """Returns one class for each way in which an input can end."""
    numbers = st.integers(0, 1_000)
    checks = (well, refused, raises, silent, hangs, dies)
    return [Probe(each.__name__, 5, numbers, each, patience=1.5) for each in checks]


def well(number: int) -> None:
    """Accepts every number."""


def refused(number: int) -> None:
    """Refuses every number by a message."""
    from jaxtune.data.errors import DataError

    raise DataError(f"rows.jsonl:{number}: found a number, expected a row")


def raises(number: int) -> None:
    """Fails for numbers from 100 on."""
    if number >= 100:
        raise KeyError(number)


def silent(number: int) -> None:
    """Accepts what it must not."""
    raise Silent("a number was accepted")


def hangs(number: int) -> None:
    """Does not return."""
    time.sleep(600)


def dies(number: int) -> None:
    """Ends the process."""
    os._exit(3)
