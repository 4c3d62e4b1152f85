"""Which cases of a test `make check` runs; `make test` runs all."""

from collections.abc import Iterable

import pytest


def slow_after(count: int, cases: Iterable) -> list:
    """Cases for `parametrize`, of which the first `count` are fast and the others slow."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    rest = [pytest.param(*case, marks=pytest.mark.slow) for case in cases[count:]]
    return [pytest.param(*case) for case in cases[:count]] + rest
