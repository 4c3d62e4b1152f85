"""Every process of a group but the first: it is connected to the first one only."""

import asyncio
import contextlib
import time
from asyncio import StreamReader, StreamWriter
from typing import Any

from jaxtune.cli.peers.group import (
    BEAT,
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


class Peer(Group):
    """The group as any process but the first sees it."""

    def __init__(self, address: str, *group: Any):
        """Connects to nobody yet; `address` is the coordinator's, and `group` as in `Group`."""
        super().__init__(*group)
        self._address = address
        self._first = ""  # host of the first process
        self._writer: StreamWriter | None = None
        self._heard = time.monotonic()

    async def joined(self, timeout: float) -> str:
        """Connects to the first process, and waits until that has all others."""
        end = time.monotonic() + timeout
        reader, self._writer = await self._reached(end, timeout)
        send(self._writer, **self.hello, host=self.host)
        while (said := await self._answer(reader, end, timeout)).get("start") is None:
            if "refused" in said:
                raise JoinError(str(said["refused"]))
            self._first = str(said.get("host", self._first))
        self._heard = time.monotonic()
        self.spawn(self._listen(reader))
        self.spawn(self._beat())
        server = await asyncio.start_server(self._to_service, "127.0.0.1", 0)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def left(self) -> None:
        """Lets the first process know that this one has ended in order."""
        send(self._writer, done=True)
        await self._writer.drain()

    async def told(self, code: int, text: str) -> None:
        """Tells the first process of an error, which tells the others."""
        send(self._writer, failed=code, text=text)
        await self._writer.drain()

    async def _reached(self, end: float, timeout: float) -> tuple[StreamReader, StreamWriter]:
        """Connects to the first process, which may start later than this one."""
        while True:
            try:
                return await asyncio.wait_for(self._connection(), max(1.0, end - time.monotonic()))
            except OSError as error:
                problem = getattr(error, "strerror", None) or "no answer"
            if time.monotonic() + PAUSE > end:
                raise JoinError(
                    f"process 0 cannot be reached at {self._address} within {timeout:.0f} "
                    f"seconds: {problem}; start it with the same --coordinator, check that address "
                    "and the firewall, or wait longer with --join-timeout"
                )
            await asyncio.sleep(PAUSE)

    async def _answer(self, reader: StreamReader, end: float, timeout: float) -> dict[str, Any]:
        said = None
        with contextlib.suppress(TimeoutError):
            # The first process gives up a little earlier, and says who is missing.
            said = await asyncio.wait_for(received(reader), end + BEAT - time.monotonic())
        if said is None:
            raise JoinError(
                f"process 0 at {self._address} did not let this process join within "
                f"{timeout:.0f} seconds, or ended: see what it says, and whether that is the "
                "address of the same command there"
            )
        return said

    async def _connection(self) -> tuple[StreamReader, StreamWriter]:
        host, _, port = self._address.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port), limit=LONGEST)

    async def _to_service(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Connects JAX's client in this process to the service in the first one.

        If the first process is gone, the client is left without an answer: it would end this
        process at once, by an abort.
        """
        try:
            far = await self._connection()
            send(far[1], jax=True)
            await joint((reader, writer), far)
            closed(far[1])
        except OSError:
            pass
        if self.over:
            closed(writer)
        else:
            await asyncio.sleep(2 * SILENCE)

    async def _listen(self, reader: StreamReader) -> None:
        fate = broken(0, self._first)
        while (said := await received(reader)) is not None:
            self._heard = time.monotonic()
            if "fate" in said:
                fate = Fate(**said["fate"])
                break
            if "done" in said:
                return
        await self.doomed(fate)

    async def _beat(self) -> None:
        """Gives the first process signs of life, and notices when that gives none."""
        while not self.over:
            send(self._writer, beat=True)
            if time.monotonic() - self._heard > SILENCE:
                await self.doomed(silent(0, self._first))
            await asyncio.sleep(BEAT)
