"""Leases: objects in a store that let one process at a time use a folder there.

A store has no locks. An owner writes an object that must not exist yet, and renews it while it is
at work. Another one waits for as long as an owner that is alive would take to renew it.
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
from collections.abc import Callable
from typing import Any

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import show
from jaxtune.files.store import Store, StoreError

NAME = "lease.json"
BEAT = 20.0  # seconds between two renewals
STALE = 90.0  # seconds without a renewal after which an owner is taken to be gone
SETTLE = 2.0  # seconds after which two that take over a lease at once know who has it
LOOK = 1.0  # seconds between two looks at another owner's lease


class LeaseError(UserError):
    """A folder of a store that another process uses, or has taken over."""


class Lease:
    """The lease of a folder, taken with `take` and given back with `release`.

    `place` identifies the local copy of the folder, whose own lock the caller holds: a lease of the
    same place is that of a process that has ended.
    """

    def __init__(self, store: Store, folder: str, what: str, place: str):
        self._store, self._name = store, f"{folder}/{NAME}" if folder else NAME
        self._what, self._place, self._token = what, place, secrets.token_hex(8)
        self._beat, self._stopped = 0, threading.Event()
        self._lost = ""

    def take(self, force: bool = False, say: Callable[[str], None] | None = None) -> str:
        """Takes the lease, and returns the place of its last owner, or "" if there was none.

        Raises LeaseError if the owner renews it meanwhile. With `force` it is not waited for.
        """
        say = say or (lambda text: show(text, sys.stderr))
        before = self._read()
        if before is None:
            if self._store.create(self._name, self._content()):
                self._begin()
                return ""
            before = self._read() or {}
            if before.get("token") == self._token:  # written by an attempt that seemed to fail
                self._begin()
                return ""
        ended = before.get("released") or before.get("place") == self._place
        if not ended and not force:
            self._watch(before, say)
        self._store.write(self._name, self._content())
        if not ended:
            time.sleep(SETTLE)
        self._refuse(self._read() or {})
        self._begin()
        return str(before.get("place", ""))

    def check(self) -> None:
        """Raises LeaseError if another process has taken the lease over."""
        if not self._lost:
            with contextlib.suppress(StoreError):  # what cannot be reached is not known to be lost
                self._note(self._read() or {})
        if self._lost:
            raise LeaseError(self._lost)

    def release(self) -> None:
        """Gives the lease back; another process may take it at once."""
        self._stopped.set()
        with contextlib.suppress(StoreError, LeaseError):
            self.check()
            self._store.write(self._name, self._content(released=True))

    def last_place(self) -> str:
        """Returns the place of the last owner, or "" if there was none."""
        return str((self._read() or {}).get("place", ""))

    def _begin(self) -> None:
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    def _renew(self) -> None:
        while not self._stopped.wait(BEAT) and not self._lost:
            with contextlib.suppress(StoreError, LeaseError):
                self.check()
                self._beat += 1
                self._store.write(self._name, self._content())

    def _watch(self, before: dict[str, Any], say: Callable[[str], None]) -> None:
        """Waits for `STALE` seconds; raises LeaseError as soon as the owner renews its lease."""
        say(
            f"{self._store.url} was last used by {_owner(before)}: waiting up to {STALE:.0f} "
            "seconds for a sign that it still is (--take-over does not wait)"
        )
        end = time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(LOOK)
            now = self._read() or {"released": True}
            if now.get("released"):
                return
            if (now.get("token"), now.get("beat")) != (before.get("token"), before.get("beat")):
                raise LeaseError(
                    f"another {self._what} is using {self._store.url}: {_owner(now)}; wait for it "
                    "to end, or name another --workdir"
                )

    def _refuse(self, now: dict[str, Any]) -> None:
        self._note(now)
        if self._lost:
            raise LeaseError(self._lost)

    def _note(self, now: dict[str, Any]) -> None:
        if now.get("token") != self._token:
            self._lost = (
                f"{self._store.url} was taken over by another {self._what}: "
                f"{_owner(now) if now else 'its lease was removed'}; this one ends, so that "
                "they do not disturb each other"
            )

    def _read(self) -> dict[str, Any] | None:
        try:
            content = self._store.read(self._name)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise LeaseError(
                f"{self._store.named(self._name)} is not what jaxtune wrote; remove it if nothing "
                "uses the folder"
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
