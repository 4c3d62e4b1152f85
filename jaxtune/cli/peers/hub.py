"""The first process of a group: the others connect to it, and hear from it about each other."""

import asyncio
import contextlib
import os
import socket
import time
from asyncio import StreamReader, StreamWriter
from dataclasses import dataclass
from typing import Any

from jaxtune.cli.peers.group import (
    BEAT,
    FAREWELL,
    PAUSE,
    SILENCE,
    Fate,
    Group,
    JoinError,
    broken,
    joint,
    silent,
)
from jaxtune.cli.peers.wire import LONGEST, closed, received, send

NAMED = 8  # processes that a message lists


@dataclass
class Member:
    """Another process that has joined."""

    host: str
    writer: StreamWriter
    heard: float  # time of its last sign of life


class Hub(Group):
    """The group as the first process sees it."""

    def __init__(self, address: str, *group: Any):
        """Listens nowhere yet; `address` is that of the coordinator, and `group` as in `Group`."""
        super().__init__(*group)
        self._address = address
        self._members: dict[int, Member] = {}
        self._all = asyncio.Event()
        self._service = _free_port()  # of JAX's service, which only this process reaches directly

    async def joined(self, timeout: float) -> str:
        """Waits until all others have connected, and lets them go on."""
        place = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or self._address
        host = place.rpartition(":")[0].strip("[]") if place != self._address else None
        try:
            await asyncio.start_server(
                self._connected, host, int(place.rpartition(":")[2]), limit=LONGEST
            )
        except OSError as error:
            raise JoinError(
                f"--coordinator {self._address}: process 0 cannot listen on that port: "
                f"{error.strerror or error}; choose another port"
            ) from None
        if self.count > 1:
            await self._wait(timeout)
        for member in self._members.values():
            send(member.writer, start=True)
        self.spawn(self._watch())
        return f"127.0.0.1:{self._service}"

    async def left(self) -> None:
        """Lets the others know that this process has ended in order."""
        for member in self._members.values():
            send(member.writer, done=True)

    async def told(self, code: int, text: str) -> None:
        """Tells all others of an error, and waits until they have ended."""
        self._tell(Fate(self.index, self.host, code, text))
        end = time.monotonic() + FAREWELL
        while self._members and time.monotonic() < end:
            await asyncio.sleep(0.05)

    async def _wait(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all.wait(), timeout)
            return
        missing = [index for index in range(1, self.count) if index not in self._members]
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        text = (
            f"of {self.count} processes, some have not joined within {timeout:.0f} seconds: "
            f"{', '.join(map(str, missing[:NAMED]))}{more}; start the same command for each of "
            f"them, with an address at which they reach this host, {self.host} (here "
            f"{self._address}), or wait longer with --join-timeout"
        )
        for member in self._members.values():
            send(member.writer, refused=text)
        raise JoinError(text)

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Serves a connection: of JAX's client to its service, or one by which a process joins."""
        try:
            hello = await received(reader)
            if hello is not None and hello.get("jax") is True:
                await self._to_service(reader, writer)
            elif hello is not None:
                await self._admitted(hello, reader, writer)
        finally:
            closed(writer)

    async def _to_service(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            try:
                far = await asyncio.open_connection("127.0.0.1", self._service)
                break
            except OSError:  # it starts once all have joined
                await asyncio.sleep(PAUSE / 10)
        await joint((reader, writer), far)
        closed(far[1])

    async def _admitted(self, hello: dict, reader: StreamReader, writer: StreamWriter) -> None:
        if refusal := self._refusal(hello):
            send(writer, refused=refusal)
            await writer.drain()
            return
        index, host = hello["index"], str(hello.get("host"))
        member = self._members[index] = Member(host, writer, time.monotonic())
        send(writer, welcome=True, host=self.host)
        if len(self._members) == self.count - 1:
            self._all.set()
        fate = broken(index, host)
        while (said := await received(reader)) is not None:
            member.heard = time.monotonic()
            if "failed" in said:
                fate = Fate(index, host, int(said["failed"]), str(said["text"]))
                break
            if "done" in said:
                del self._members[index]
                return
        self._members.pop(index, None)
        if self._all.is_set():
            await self._gone(fate)
        # One that went before all had come may come again.

    def _refusal(self, hello: dict[str, Any]) -> str:
        """Returns why a process cannot join, or ""."""
        index, given = hello.get("index"), hello.get("count")
        if hello.get("version") != self.hello["version"]:
            return (
                f"process 0 on {self.host} runs jaxtune {self.hello['version']}, this one runs "
                f"{hello.get('version')}: install the same version on every host"
            )
        if given != self.count:
            return f"process 0 on {self.host} has --process-count {self.count}, this one {given}"
        if not isinstance(index, int) or not 0 < index < self.count or index in self._members:
            return (
                f"--process-index {index} is taken already: start one process for each index from "
                f"0 to {self.count - 1}"
            )
        return ""

    async def _gone(self, fate: Fate) -> None:
        if not self.over:
            self._tell(fate)
            await self.doomed(fate)

    def _tell(self, fate: Fate) -> None:
        for member in self._members.values():
            send(member.writer, fate=vars(fate))

    async def _watch(self) -> None:
        """Gives the others signs of life, and notices when one of them gives none."""
        while True:
            now = time.monotonic()
            for index, member in list(self._members.items()):
                send(member.writer, beat=True)
                if now - member.heard > SILENCE:
                    del self._members[index]
                    self.spawn(self._gone(silent(index, member.host)))
            await asyncio.sleep(BEAT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
