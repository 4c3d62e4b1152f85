"""What SIGINT and SIGTERM do: end the program at once, or after work that is finished first.

Python runs signal handlers between two instructions of the main thread. That is too late while it
compiles a program or reads weights, and an exception raised there may come up anywhere, even in a
garbage collection that swallows it. In a program of the command line, a thread of its own therefore
learns of a signal and ends the process, unless the main thread has work to finish: then it sets a
flag, which the main thread reads at points where it is safe to stop.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)
FLUSHING = 1.0  # most seconds that are spent on writing out what was printed


class Stopped(Exception):
    """A run that was stopped by a signal, after it saved what it had done; it can be resumed."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number  # of the signal


class Stop:
    """How the program stops if a signal arrives now, and whether one has arrived.

    At first it ends at once. While there is work to finish first, the first signal is recorded in
    `asked` and announced, and a second one ends the program.
    """

    def __init__(self, outcome: str = "", group: bool = False):
        self.asked = 0  # number of the signal that requests a stop, or 0
        self.group = group  # whether several processes run this program, and stop together
        self._work, self._outcome = "", outcome
        self._deciding = threading.RLock()  # a handler may interrupt its holder

    def at_once(self, outcome: str) -> None:
        """Lets a signal end the program at once; raises `Stopped` if one has arrived already.

        `outcome` ends the message, such as "run the same command again to resume".
        """
        with self._deciding:
            self._work, self._outcome = "", outcome
        if self.asked and not self.group:
            raise Stopped(self.asked, _message(self.asked, outcome))

    def after(self, work: str, outcome: str) -> None:
        """Lets a signal wait for work, such as "the step is finished"; see `at_once`."""
        with self._deciding:
            self._work, self._outcome = work, outcome

    def agreed(self, step: int) -> int:
        """Returns the signal to stop on after a step, or 0; the same in all processes."""
        if not self.group:
            return self.asked
        from jax.experimental import multihost_utils

        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0

    def note(self, number: int) -> bool:
        """Records a signal, says what will happen, and returns whether the program ends at once."""
        with self._deciding:
            ends = not self._work or bool(self.asked)
            if ends:
                _say(_message(number, self._outcome))
            else:
                self.asked = number
                name = signal.Signals(number).name
                _say(f"{name}: {self._work} first; a second signal ends the program at once")
        if self.group and not ends and number != signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX passes this one on to all processes
        return ends


class _Program:
    """The thread that learns of signals in a program of the command line."""

    def __init__(self):
        self.stop = Stop()
        self._terminal = _terminal()
        self._signals, self._sender = socket.socketpair()
        self._sender.setblocking(False)

    def start(self) -> None:
        """Starts the thread, and makes Python send it the numbers of all signals."""
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in NUMBERS:
            signal.signal(number, _ignore)

    def _watch(self) -> None:
        while received := self._signals.recv(1):
            if received[0] in NUMBERS and self.stop.note(received[0]):
                self._terminal()
                end(128 + received[0])


_program: _Program | None = None
_last: Callable[[int], None] | None = None  # called before the process ends


def end_program() -> None:
    """Lets signals end this process from now on, which must belong to the command line."""
    global _program
    _program = _Program()
    _program.start()


def release() -> None:
    """Lets signals end the process as the system does, since nothing is left to be done."""
    signal.set_wakeup_fd(-1)
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)


def before_end(last: Callable[[int], None]) -> None:
    """Has a function called with the exit code when `end` ends the process."""
    global _last
    _last = last


def end(code: int) -> None:
    """Ends the process without waiting for native threads, some of which do not end in order."""
    if _last:
        _last(code)
    flushing = threading.Thread(target=_flush, daemon=True)  # a reader may have stopped reading
    flushing.start()
    flushing.join(FLUSHING)
    os._exit(code)


@contextlib.contextmanager
def stopping(outcome: str, group: bool = False) -> Iterator[Stop]:
    """Yields the `Stop` of a run, which decides what signals do during the block.

    In a program that is not the command line's, such as a notebook, a signal that would end the
    program is left to the handler that was there before: SIGINT raises KeyboardInterrupt.

    Args:
      outcome: End of the message if the program ends at once, as in `Stop.at_once`.
      group: Whether several processes run this program. JAX passes SIGTERM on to all of them, so
        its handler is kept.
    """
    stop = Stop(outcome, group)
    if _program:
        _program.stop = stop
        try:
            yield stop
        finally:
            _program.stop = Stop()
        return
    main = threading.current_thread() is threading.main_thread()
    caught = NUMBERS[: 1 if group else 2] if main else ()
    before = {number: signal.getsignal(number) for number in caught}
    try:
        for number, handler in before.items():
            signal.signal(number, _noting(stop, handler))
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _noting(stop: Stop, before: Any) -> Callable[[int, Any], None]:
    """Returns a handler that notes a signal, and passes it to `before` if it ends the program."""

    def handler(number: int, frame: Any) -> None:
        if not stop.note(number):
            return
        if callable(before):
            before(number, frame)
        elif before is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handler


def _ignore(*_: Any) -> None:
    """Does nothing in the main thread: the thread of `_Program` has the signal's number."""


def _message(number: int, outcome: str) -> str:
    return f"stopped by {signal.Signals(number).name}" + (f": {outcome}" if outcome else "")


def _say(text: str) -> None:
    """Writes a line to standard error, past Python's buffers, which a thread may have locked."""
    with contextlib.suppress(OSError, ValueError):
        start = "\n" if sys.stderr.isatty() else ""
        os.write(sys.stderr.fileno(), f"{start}{text}\n".encode())


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()


def _terminal() -> Callable[[], None]:
    """Returns a function that gives the terminal the settings it has now, as a shell expects."""
    try:
        import termios

        given = termios.tcgetattr(sys.stdin.fileno())
    except (ImportError, OSError, ValueError, AttributeError):  # Windows, or no terminal
        return lambda: None
    except termios.error:
        return lambda: None

    def restore() -> None:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, given)

    return restore
