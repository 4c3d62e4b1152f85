"""Pushes exports of a run to the Hub in the background.

A thread uploads the newest export and skips those that were superseded while they waited. Temporary
failures are retried with growing pauses. No failure of an upload stops the run.
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
SHORTEST, LONGEST = 5.0, 600.0  # pauses between attempts in seconds; each doubles the last
ENDING = 10.0  # longest pause in seconds while the run waits for the last push
BRIEF = 10.0  # seconds that a run which stops early waits
NAME = 60  # characters kept of a run's name, from its end, which holds the start time


@dataclass(frozen=True)
class Offer:
    """An export, a file or directory, to upload."""

    source: Path
    caption: str  # message of the commit
    own: bool  # written only for this upload, in a directory to be removed afterwards

    def discard(self) -> None:
        """Removes the files if they were written only for this upload."""
        if self.own:
            shutil.rmtree(self.source.parent, ignore_errors=True)


class Unpushed:
    """Stands in for `Pushes` in a run that pushes nothing."""

    def saved(self, *_: Any) -> None:
        """Ignores a checkpoint that was saved."""

    def ended(self, *_: Any) -> dict[str, Any]:
        """Returns an empty report."""
        return {}

    def tell(self) -> None:
        """Reports nothing, as no push is under way."""

    def leave(self) -> None:
        """Waits for nothing, as no push is under way."""


class Pushes:
    """Uploads exports in a thread of the first process; create it with `pushing`."""

    def __init__(self, config: Hub, workdir: Workdir, progress: Progress, first: bool):
        self._config, self._workdir, self._progress = config, workdir, progress
        self._first = first
        self._repo, self._claimed = repository(config.repo, workdir.name), False
        self._changed = threading.Condition()
        self._newest: Offer | None = None  # waiting for the thread
        self._current: Offer | None = None  # being uploaded, or waiting to be retried
        self._ending = self._stopped = False
        self._told: deque[str] = deque()
        self._failing = ""  # last error since the last success, or ""
        self._last: tuple[Offer, str] | None = None  # last upload, and the URL of its commit

    def begin(self) -> None:
        """Claims the repository and starts the thread.

        If the Hub is unreachable, a new run fails and a resumed one goes on.
        """
        shutil.rmtree(self._workdir.path / ROOM, ignore_errors=True)
        try:
            self._claim()
        except PassingError as error:
            if not _begun(self._workdir.path):
                raise
            self._fail("finding the repository", error)
        self.tell()
        threading.Thread(target=self._work, name="push", daemon=True).start()

    def saved(self, export: Callable[[Path], Path], step: int, caption: str) -> None:
        """Exports a checkpoint and offers it for upload, if the config pushes at every save.

        `export` writes the export into a given directory and returns its path.
        """
        if self._config.every != "save":
            return
        try:
            source = export(self._workdir.path / ROOM / str(step))
        except (ValueError, OSError) as error:
            self._fail(caption, error)
        else:
            self._offer(Offer(source, caption, own=True))

    def ended(self, exported: Path, caption: str) -> dict[str, Any]:
        """Uploads the final export and waits for it, at most `hub.wait` seconds.

        Returns:
          The repository, and as `pushed` the URL of the commit or None; {} on other processes.
        """
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
        """Prints the messages of the thread; only the main thread may print."""
        while self._told:
            self._progress.say(self._told.popleft())

    def leave(self) -> None:
        """Waits a few seconds for uploads under way, as the run stops early."""
        if self._first:
            self._wait(BRIEF)
            self.tell()

    def stop(self) -> None:
        """Makes the thread end; no new attempt begins."""
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
        """Waits until no upload is pending, for at most `seconds`; Ctrl-C ends the wait."""
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
        """Waits for an export; returns the newest, or after a failure the same one again.

        Returns None once stopped.
        """
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
        kind = "a new repository" if new else "an existing repository"
        when = "at every save" if self._config.every == "save" else "at the end"
        self._told.append(f"will push {when} to {hub.address(self._repo)}, {kind}")

    def _rest(self, failures: int) -> None:
        """Pauses between attempts; ends at once if the run begins to wait, or stops."""
        with self._changed:
            growing = min(SHORTEST * 2 ** min(failures - 1, 30), LONGEST)
            now = self._ending, self._stopped
            self._changed.wait_for(
                lambda: (self._ending, self._stopped) != now,
                min(growing, ENDING) if self._ending else growing,
            )

    def _fail(self, caption: str, error: Exception) -> None:
        """Logs a failure, and reports it if it is the first since the last success."""
        self._log({"failed": caption, "why": str(error)})
        if not self._failing:
            again = "will retry" if isinstance(error, PassingError) else "the run continues"
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
        why = self._failing or f"the Hub took longer than hub.wait ({self._config.wait} seconds)"
        return f"not pushed: {why}\nto push it yourself: python launch.py {command}"


def sign_in(config: Hub, workdir: Path) -> None:
    """Checks the Hub token of a run that pushes.

    If the Hub is unreachable, a new run fails and a resumed one goes on.
    """
    if not config.repo:
        return
    try:
        hub.account()
    except HubError as error:
        if isinstance(error, PassingError) and _begun(workdir):
            return
        raise type(error)(
            f"hub.repo is {config.repo!r}: {error}\n  To train without pushing, add "
            "--config.hub.repo= and afterwards run: python launch.py push DIRECTORY REPOSITORY"
        ) from None


@contextlib.contextmanager
def pushing(
    config: Hub, workdir: Workdir, progress: Progress, first: bool
) -> Iterator[Pushes | Unpushed]:
    """Context in which a run pushes its exports; on an error, uploads get a few more seconds.

    Args:
      config: Section `hub`; without a repository, nothing is pushed.
      workdir: Directory of the run.
      progress: Display for messages.
      first: Whether this is the first process, the only one that uploads.

    Returns:
      A context manager for the `Pushes`, or for an `Unpushed` if nothing is pushed.
    """
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
    """Returns the repository of a run: `pattern`, with "{name}" replaced by its cleaned-up name."""
    plain = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    plain = re.sub(r"([.-])[.-]+", r"\1", plain)[-NAME:].strip(".-")
    return pattern.replace("{name}", plain)


def _begun(workdir: Path) -> bool:
    """Returns whether a workdir has run checkpoints, so that the run is a resumed one."""
    return (workdir.expanduser() / "checkpoints").is_dir()
