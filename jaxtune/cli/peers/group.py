"""The processes that run one command: how each learns that another has failed or is lost.

JAX's own service ends a process by an abort in C++ when another dies, and by default after 100
seconds. Here the processes keep connections of their own, through the port of the coordinator, and
JAX's service is reached through the same port. A process whose connection closes, or that is silent
for `SILENCE` seconds, is lost; one that fails says so first. Either ends all the others, each with
one message.
"""

import asyncio
import contextlib
import os
import re
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import jaxtune
from jaxtune.cli.peers.wire import copied
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import unbroken, visible

BEAT = 2.0  # seconds between two signs of life
SILENCE = 45.0  # seconds after which a process that says nothing is lost
GRACE = 2.0  # seconds that this process has to fail in its own words after another has failed
LOST = 75  # exit code, EX_TEMPFAIL: the same command may succeed
# In the text of errors of computations and waits that break off when another process is gone.
STATUS = re.compile(r"\b(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED): ")
FAREWELL = 10.0  # most seconds that the first process waits for the others to have heard it
PAUSE = 0.5  # seconds between two attempts to connect


class JoinError(UserError):
    """Processes that did not find each other, or do not fit together."""


@dataclass(frozen=True)
class Fate:
    """Why a process has ended before its time."""

    index: int
    host: str
    code: int  # exit code for the others
    text: str


class Group(ABC):
    """The processes of a command, as one of them sees them.

    All communication is in a thread of its own. It also ends this process when another one is lost
    or has failed, as the main thread may be waiting for that one in a computation on devices.
    """

    def __init__(self, index: int, count: int, end: Callable[[Fate], None]):
        """Connects to nobody yet.

        Args:
          index: Index of this process.
          count: Number of processes.
          end: Ends this process for a reason, and does not return.
        """
        self.index, self.count = index, count
        self.hello = {"version": jaxtune.__version__, "index": index, "count": count}
        self.host = socket.gethostname()
        self._end = end
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task] = set()
        self._ending = threading.Lock()  # held by the thread that ends this process, to the end
        self.over = False  # whether nothing that happens to others matters any more

    @abstractmethod
    async def joined(self, timeout: float) -> str:
        """Waits for all processes; returns the address at which JAX's client finds its service."""

    @abstractmethod
    async def left(self) -> None:
        """Lets the others know that this process has ended in order."""

    @abstractmethod
    async def told(self, code: int, text: str) -> None:
        """Tells all others that this process fails."""

    def join(self, timeout: float) -> str:
        """Starts the thread and does what `joined` does; raises JoinError after `timeout` seconds.

        Args:
          timeout: Seconds.

        Returns:
          An address, HOST:PORT.
        """
        threading.Thread(target=self._loop.run_forever, name="peers", daemon=True).start()
        return self._run(self.joined(timeout))

    def failing(self, error: BaseException, code: int, text: str) -> None:
        """Tells the others that this process ends by an error.

        Does not return if the error is only what the loss or failure of another process led to: the
        process then ends with a message about that one.

        Args:
          error: The error.
          code: Exit code of this process.
          text: Message of the error.
        """
        if _foreign(error):  # a computation broke off: the thread is about to know whose fault
            time.sleep(SILENCE + 2 * BEAT)
        self.fail(code, text)

    def fail(self, code: int, text: str) -> None:
        """Tells the others that this process ends with a code; the first process waits for them."""
        if not self._ending.acquire(blocking=False):
            time.sleep(FAREWELL)  # the other thread has begun to end this process
        self.over = True
        with contextlib.suppress(Exception):
            self._run(self.told(code, text), FAREWELL + 1)

    def leave(self) -> None:
        """Ends the watch, once all processes are known to have done their work."""
        self.over = True
        self._run(self.left(), FAREWELL)

    def spawn(self, work: Coroutine) -> asyncio.Task:
        """Starts a task in the thread."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def doomed(self, fate: Fate) -> None:
        """Ends this process because of another one; an error of its own has some time to go first.

        It is most often the same: a config or a file that is wrong for all.
        """
        if self.over:
            return
        if fate.code != LOST:
            await asyncio.sleep(GRACE)
        if not self.over and self._ending.acquire(blocking=False):
            self.over = True
            self._end(fate)

    def _run(self, work: Coroutine, timeout: float | None = None) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)


def silent(index: int, host: str) -> Fate:
    """Returns the fate of a process that says nothing any more."""
    return Fate(index, host, LOST, f"nothing was heard from it for {SILENCE:.0f} seconds")


def broken(index: int, host: str) -> Fate:
    """Returns the fate of a process whose connection was closed without a word."""
    return Fate(index, host, LOST, "it was killed, or its host went down")


async def joint(
    near: tuple[StreamReader, StreamWriter], far: tuple[StreamReader, StreamWriter]
) -> None:
    """Copies bytes between two connections in both directions until either closes one."""
    ways = [copied(near[0], far[1]), copied(far[0], near[1])]
    tasks = [asyncio.ensure_future(way) for way in ways]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def message(fate: Fate, count: int, advice: str) -> str:
    """Returns what a process says that ends because of another one."""
    who = f"process {fate.index} of {count}, on {fate.host},"
    if fate.code == LOST:
        return f"{who} is lost: {fate.text}. {advice}"
    return f"{who} has ended: {fate.text}"


def say(text: str) -> None:
    """Writes an error past Python's buffers, which the main thread may have locked."""
    with contextlib.suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"error: {visible(unbroken(text))}\n".encode())


def _foreign(error: BaseException | None) -> bool:
    """Whether an error comes from a computation or a wait that other processes take part in."""
    while error is not None:
        if STATUS.search(str(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False
