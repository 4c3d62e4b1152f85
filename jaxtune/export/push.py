"""What a run tuned, sent to the Hub while it goes on.

A thread sends the newest of what was saved; what became older while it waited is left out. What
fails is tried again, after longer and longer pauses, and never stops the run.
"""

import contextlib
import datetime
import json
import re
import shlex
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.checkpoint import hub
from jaxtune.checkpoint.hub import HubError, PassingError
from jaxtune.config.run_sections import Hub
from jaxtune.display.progress import Progress
from jaxtune.workdir.directory import Workdir

LOG, ROOM = "pushes.jsonl", ".push"
SHORTEST, LONGEST = 5.0, 600.0  # seconds between attempts: each pause is twice the one before
ENDING = 10.0  # the same while the run waits
BRIEF = 10.0  # seconds that a run which is stopped may wait
NAME = 60  # characters of a run's name that a repository's takes; the time is at its end


@dataclass(frozen=True)
class Offer:
    """A file or directory to send."""

    source: Path
    caption: str  # of the commit
    own: bool  # written for this alone, in a directory to be removed when it was sent

    def discard(self) -> None:
        """It is not needed any more."""
        if self.own:
            shutil.rmtree(self.source.parent, ignore_errors=True)


class Unpushed:
    """Sends nothing."""

    def saved(self, *_: Any) -> None:
        """Nothing."""

    def ended(self, *_: Any) -> dict[str, Any]:
        """Nothing to tell of."""
        return {}

    def tell(self) -> None:
        """Nothing."""

    def leave(self) -> None:
        """Nothing."""


class Pushes:
    """Sends what a run saves, by a thread of the first process; `pushing` makes them."""

    def __init__(self, config: Hub, workdir: Workdir, progress: Progress, first: bool):
        self._config, self._workdir, self._progress = config, workdir, progress
        self._first = first
        self._repo, self._claimed = repository(config.repo, workdir.name), False
        self._changed = threading.Condition()
        self._newest: Offer | None = None  # not looked at yet
        self._current: Offer | None = None  # in the thread's hands
        self._ending = self._stopped = False
        self._told: deque[str] = deque()
        self._failing = ""  # since the last success: why
        self._last: tuple[Offer, str] | None = None  # what was sent, and its commit

    def begin(self) -> None:
        """Claim the repository, and begin to send; a Hub that is away stops only a new run."""
        shutil.rmtree(self._workdir.path / ROOM, ignore_errors=True)
        try:
            self._claim()
        except PassingError as error:
            if not _begun(self._workdir.path):
                raise
            self._fail("to find the repository", error)
        self.tell()
        threading.Thread(target=self._work, name="push", daemon=True).start()

    def saved(self, export: Callable[[Path], Path], step: int, caption: str) -> None:
        """What a run just saved, which `export` writes into a directory."""
        if self._config.every != "save":
            return
        try:
            source = export(self._workdir.path / ROOM / str(step))
        except (ValueError, OSError) as error:
            self._fail(caption, error)
        else:
            self._offer(Offer(source, caption, own=True))

    def ended(self, exported: Path, caption: str) -> dict[str, Any]:
        """Send what a run exported in the end, wait for that, and say what came of it."""
        if not self._first:
            return {}
        offer = Offer(exported, caption, own=False)
        self._offer(offer)
        self._progress.draw(f"pushing to {self._repo}")
        self._wait(self._config.wait)
        self.tell()
        url = self._last[1] if self._last and self._last[0] is offer else None
        if not url:
            self._progress.say(self._by_hand(exported))
        return {"repository": self._repo, "pushed": url}

    def tell(self) -> None:
        """Say what the thread found, from the one that may print."""
        while self._told:
            self._progress.say(self._told.popleft())

    def leave(self) -> None:
        """A run stops early: what is being sent has a few seconds."""
        if self._first:
            self._wait(BRIEF)
            self.tell()

    def stop(self) -> None:
        """Begin no more attempts."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _offer(self, offer: Offer) -> None:
        if not self._first:
            return
        with self._changed:
            older, self._newest = self._newest, offer
            self._changed.notify_all()
        if older:
            older.discard()

    def _wait(self, seconds: float) -> None:
        """Until all is sent, or will not be; Ctrl-C ends it."""
        with self._changed, contextlib.suppress(KeyboardInterrupt):
            self._ending = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._newest or self._current), seconds)

    def _work(self) -> None:
        failures = 0
        while offer := self._take():
            try:
                url = self._send(offer)
            except HubError as error:
                failures += 1
                self._fail(offer.caption, error)
                if isinstance(error, PassingError):
                    self._rest(failures)
                else:
                    self._put_down(offer)
            else:
                failures = 0
                self._succeed(offer, url)
                self._put_down(offer)

    def _take(self) -> Offer | None:
        """The newest there is; the one that could not be sent, if nothing came since."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._current or self._stopped)
            if self._stopped:
                return None
            older = self._current if self._newest else None
            self._current, self._newest = self._newest or self._current, None
        if older:
            older.discard()
        return self._current

    def _put_down(self, offer: Offer) -> None:
        offer.discard()
        with self._changed:
            self._current = None
            self._changed.notify_all()

    def _send(self, offer: Offer) -> str:
        if not self._claimed:
            self._claim()
        return hub.upload(offer.source, self._repo, offer.caption, quiet=True)

    def _claim(self) -> None:
        if "/" not in self._repo:
            self._repo = f"{hub.account()}/{self._repo}"
        new = hub.claim(self._repo, self._config.private)
        self._claimed = True
        kind = "a new repository" if new else "on top of what is there"
        when = "at every save" if self._config.every == "save" else "at the end"
        self._told.append(f"pushed {when} to {hub.address(self._repo)}, {kind}")

    def _rest(self, failures: int) -> None:
        """A pause, which ends at once where the run begins to wait for this."""
        with self._changed:
            growing = min(SHORTEST * 2 ** min(failures - 1, 30), LONGEST)
            now = self._ending, self._stopped
            self._changed.wait_for(
                lambda: (self._ending, self._stopped) != now,
                min(growing, ENDING) if self._ending else growing,
            )

    def _fail(self, caption: str, error: Exception) -> None:
        """Note a failure, and tell of it if it is the first since all went well."""
        self._log({"failed": caption, "why": str(error)})
        if not self._failing:
            again = "will be tried again" if isinstance(error, PassingError) else "the run goes on"
            self._told.append(f"{error} ({again})")
        self._failing = str(error)

    def _succeed(self, offer: Offer, url: str) -> None:
        self._log({"pushed": offer.caption, "commit": url})
        self._told.append(f"pushed {offer.caption}: {url}")
        self._failing, self._last = "", (offer, url)

    def _log(self, line: dict[str, str]) -> None:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        text = json.dumps({"time": now, **line}, ensure_ascii=False)
        with contextlib.suppress(OSError), (self._workdir.path / LOG).open("a") as file:
            file.write(text + "\n")

    def _by_hand(self, exported: Path) -> str:
        public = [] if self._config.private else ["--public"]
        command = shlex.join(["push", str(exported), self._repo, *public])
        why = self._failing or f"the Hub took longer than hub.wait, {self._config.wait} seconds"
        return f"not pushed: {why}\nto push it by hand: python launch.py {command}"


def sign_in(config: Hub, workdir: Path) -> None:
    """Check the token of a run that is to push; a Hub that is away stops only a new run."""
    if not config.repo:
        return
    try:
        hub.account()
    except HubError as error:
        if isinstance(error, PassingError) and _begun(workdir):
            return
        raise type(error)(
            f"hub.repo is {config.repo!r}: {error}\n  To train without: --config.hub.repo= "
            "and afterwards python launch.py push DIRECTORY REPOSITORY"
        ) from None


@contextlib.contextmanager
def pushing(
    config: Hub, workdir: Workdir, progress: Progress, first: bool
) -> Iterator[Pushes | Unpushed]:
    """What sends a run's results; a run that stops early still waits for it, but not for long."""
    if not config.repo:
        yield Unpushed()
        return
    pushes = Pushes(config, workdir, progress, first)
    if first:
        pushes.begin()
    try:
        yield pushes
    except Exception:
        pushes.leave()
        raise
    finally:
        pushes.stop()


def repository(pattern: str, name: str) -> str:
    """The repository that a config means, for a run of this name."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    plain = re.sub(r"([.-])[.-]+", r"\1", plain)[-NAME:].strip(".-")
    return pattern.replace("{name}", plain)


def _begun(workdir: Path) -> bool:
    """Whether there are steps in a directory that must not be kept waiting."""
    return (workdir.expanduser() / "checkpoints").is_dir()
