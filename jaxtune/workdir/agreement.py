"""Decisions that all JAX processes of a run take together.

A process that fails alone leaves the others waiting for it in their next common operation. So each
says how it fared, and all of them act on what any of them says.
"""

import os
import re
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.workdir.directory import WorkdirError

SYSTEM_ERROR = re.compile(r"\[os_error_code='(\d+)'\]")  # in what TensorStore raises
LONGEST = 2048  # bytes of a message to the other processes; the rest is cut

Result = TypeVar("Result")


def together(action: Callable[[], Result]) -> tuple[Result | None, str]:
    """Returns the result of an action and "", or None and the error if it failed in any process.

    The action must not fail while another process waits for it. Raises WorkdirError in every
    process if the action raises one in any of them.
    """
    result, refused, problem = None, False, ""
    try:
        result = action()
    except WorkdirError as error:
        refused, problem = True, str(error)
    except Exception as error:
        problem = short(error)
    said = [(flag, text) for flag, text in _of_all(refused, problem) if text]
    for raised, text in said:
        if raised:
            raise WorkdirError(text)
    return (None, said[0][1]) if said else (result, "")


def highest(number: int) -> int:
    """Returns the highest of the numbers that the processes pass, each its own."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).max())


def short(error: Exception) -> str:
    """Returns an error's text on one line; of an error of the system, only what that says."""
    if found := SYSTEM_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:299]}…"


def _of_all(flag: bool, text: str) -> list[tuple[bool, str]]:
    """Returns the flag and the text of every process, which is named in the texts of the others."""
    if jax.process_count() == 1:
        return [(flag, text)]
    mine = text.encode()[:LONGEST]
    sent = (np.asarray(flag), np.frombuffer(mine.ljust(LONGEST, b"\0"), np.uint8))
    flags, texts = multihost_utils.process_allgather(sent)
    found = []
    for number, (raised, content) in enumerate(zip(flags, texts, strict=True)):
        told = content.tobytes().rstrip(b"\0").decode(errors="ignore")
        foreign = told and number != jax.process_index()
        found.append((bool(raised), f"in process {number}: {told}" if foreign else told))
    return found
