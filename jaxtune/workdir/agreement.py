"""Decisions that all JAX processes of a run take together.

A process that fails alone leaves the others waiting for it in their next common operation. So each
says how it fared, and all of them act on what any of them says.
"""

import json
import os
import re
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.display.errors import UserError
from jaxtune.workdir.errors import WorkdirError

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


def first() -> bool:
    """Whether this is the first process, which writes and prints for all."""
    return jax.process_index() == 0


def of_first(action: Callable[[], Any]) -> Any:
    """Returns in every process the result of an action that only the first one takes.

    The action must not wait for other processes. Its result must be JSON-compatible; among several
    processes, tuples arrive as lists. An error of the action is raised in every process.
    """
    if jax.process_count() == 1:
        return action()
    said, failure = {}, None
    if first():
        try:
            said = {"result": action()}
        except Exception as error:
            text = str(error) if isinstance(error, UserError) else short(error)
            said, failure = {"problem": text}, error
    content = np.frombuffer(json.dumps(said).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(content.size, np.int32)))
    content = content if first() else np.zeros(size, np.uint8)
    said = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes())
    if failure:
        raise failure
    if "problem" in said:
        raise UserError(said["problem"])
    return said["result"]


def refuse_different(what: str, content: Any) -> None:
    """Raises WorkdirError in every process if their contents, which JSON can hold, differ."""
    if jax.process_count() == 1:
        return
    mine = np.asarray(zlib.crc32(json.dumps(content, sort_keys=True).encode()), np.uint32)
    found = multihost_utils.process_allgather(mine)
    if differing := np.flatnonzero(found != found[0]).tolist():
        numbers = ", ".join(map(str, differing))
        raise WorkdirError(
            f"{what} differ between the hosts: process{'es' if differing[1:] else ''} {numbers} "
            "found others than process 0. Copy the files of its host to all others"
        )


def unless_all(holds: Callable[[], bool], problem: str) -> None:
    """Raises WorkdirError in every process unless something holds in all of them."""
    if jax.process_count() == 1:
        return
    found = multihost_utils.process_allgather(np.asarray(holds()))
    if not found.all():
        raise WorkdirError(f"process {int(np.argmin(found))} finds no such run: {problem}")


def any_text(text: str) -> str:
    """Returns the first text that is not empty of those that the processes pass, or ""."""
    return next((each for _, each in _of_all(False, text) if each), "")


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
