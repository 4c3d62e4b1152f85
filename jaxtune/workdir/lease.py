"""Leases: objects in a store that let one process at a time use a folder there.

A store has no locks, but it can refuse to create an object that exists. So the leases of a folder
are numbered: whoever creates the next number owns the folder, and an owner whose number has a
successor has lost it. An owner renews its lease while it is at work; another process waits for as
long as an owner that is alive would take to renew it.
"""

import contextlib
import datetime
import getpass
import json
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import PurePosixPath
from typing import Any

from jaxtune.display.escapes import show
from jaxtune.files.store import Store, StoreError
from jaxtune.workdir.errors import WorkdirError

FOLDER = "leases"  # in the workdir
BEAT = 20.0  # seconds between two renewals
STALE = 90.0  # seconds without a renewal after which an owner is taken to be gone
LOOK = 1.0  # seconds between two looks at another owner's lease


class LeaseError(WorkdirError):
    """A folder of a store that another process uses, or has taken over."""


class Lease:
    """The lease of a folder, taken with `take` and given back with `release`.

    `place` identifies the local copy of the folder, whose own lock the caller holds: a lease of the
    same place is that of a process that has ended.
    """

    def __init__(self, store: Store, folder: str, what: str, place: str):
        self._store, self._folder = store, f"{FOLDER}/{folder or 'run'}"
        self._what, self._place, self._token = what, place, secrets.token_hex(8)
        self._number = self._beat = 0
        self._stopped, self._lost = threading.Event(), ""

    def take(self, force: bool = False) -> str:
        """Takes the lease, and returns the place of its last owner, or "" if there was none.

        Raises LeaseError if the owner renews it meanwhile. With `force` it is not waited for.
        """
        number, before = self._latest()
        ended = before.get("released") or before.get("place") == self._place
        if number and not ended and not force:
            self._watch(number, before)
        self._number = number + 1
        self._store.create(self._name(self._number), self._content())
        holder = self._latest()[1]
        if holder.get("token") != self._token:
            raise self._used(holder)
        self._store.remove(self._name(each) for each in self._numbers() if each <= number)
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return str(before.get("place", ""))

    def check(self) -> None:
        """Raises LeaseError if another process has taken the lease over."""
        if not self._lost:
            with contextlib.suppress(StoreError):  # what cannot be reached is not known to be lost
                later = self._read(self._number + 1)
                if later or self._read(self._number).get("token") != self._token:
                    self._lost = (
                        f"{self._store.url} was taken over by another {self._what}: "
                        f"{_owner(later) if later else 'its lease was removed'}; this one ends, so "
                        "that they do not disturb each other"
                    )
        if self._lost:
            raise LeaseError(self._lost)

    def release(self) -> None:
        """Gives the lease back; another process may take it at once."""
        self._stopped.set()
        with contextlib.suppress(StoreError, LeaseError):
            self.check()
            self._store.write(self._name(self._number), self._content(released=True))

    def last_place(self) -> str:
        """Returns the place of the last owner, or "" if there was none."""
        return str(self._latest()[1].get("place", ""))

    def _renew(self) -> None:
        while not self._stopped.wait(BEAT) and not self._lost:
            with contextlib.suppress(StoreError, LeaseError):
                self.check()
                self._beat += 1
                self._store.write(self._name(self._number), self._content())

    def _watch(self, number: int, before: dict[str, Any]) -> None:
        """Waits for `STALE` seconds; raises LeaseError as soon as the owner renews its lease."""
        show(
            f"{self._store.url} was last used by {_owner(before)}: waiting up to {STALE:.0f} "
            "seconds for a sign that it still is (--take-over does not wait)",
            sys.stderr,
        )
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(LOOK)
            now = self._read(number)
            if now.get("released"):
                return
            if now.get("beat") != before.get("beat"):
                raise self._used(now or self._latest()[1])

    def _used(self, lease: dict[str, Any]) -> LeaseError:
        return LeaseError(
            f"another {self._what} is using {self._store.url}: {_owner(lease)}; wait for it to "
            "end, or name another --workdir"
        )

    def _latest(self) -> tuple[int, dict[str, Any]]:
        """Returns the number and content of the newest lease; 0 and an empty one without any."""
        number = max(self._numbers(), default=0)
        found = self._read(number) if number else {}
        while later := self._read(number + 1):  # the list may lag behind
            number, found = number + 1, later
        return number, found

    def _numbers(self) -> list[int]:
        names = map(PurePosixPath, self._store.entries(self._folder))
        return [int(name.stem) for name in names if name.stem.isdecimal()]

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number}.json"

    def _read(self, number: int) -> dict[str, Any]:
        """Returns the content of the lease of a number; an empty one if there is none."""
        name = self._name(number)
        try:
            content = self._store.read(name)
        except FileNotFoundError:
            return {}
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise LeaseError(
                f"{self._store.named(name)} is not what jaxtune wrote; remove it if nothing uses "
                "the folder"
            )
        return found

    def _content(self, released: bool = False) -> bytes:
        about = {
            "what": self._what,
            "owner": f"{_user()}@{socket.gethostname()}, process {os.getpid()}",
            "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "place": self._place,
            "token": self._token,
            "beat": self._beat,
            "released": released,
        }
        return json.dumps(about, indent=2).encode()


def _owner(lease: dict[str, Any]) -> str:
    return f"{lease.get('owner', 'an unknown process')} (renewed {lease.get('time', 'at no time')})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid()) if hasattr(os, "getuid") else "user"
