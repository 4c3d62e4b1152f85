"""What the processes of a command say to each other: JSON objects, one per line, over TCP."""

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import Any

LONGEST = 65_536  # bytes of a line
PIECE = 65_536  # bytes that `copied` reads at a time


def send(writer: StreamWriter, **content: Any) -> None:
    """Sends an object, unless the connection is closed."""
    with suppress(OSError, RuntimeError):
        writer.write(json.dumps(content).encode() + b"\n")


async def received(reader: StreamReader) -> dict[str, Any] | None:
    """Returns the next object; None if the connection is closed, or says something else."""
    try:
        found = json.loads(await reader.readuntil(b"\n"))
    except (OSError, ValueError, RecursionError, EOFError, asyncio.LimitOverrunError):
        return None
    return found if isinstance(found, dict) else None


async def copied(reader: StreamReader, writer: StreamWriter) -> None:
    """Copies bytes until either side is closed."""
    with suppress(OSError):
        while piece := await reader.read(PIECE):
            writer.write(piece)
            await writer.drain()


def closed(*writers: StreamWriter) -> None:
    """Closes connections, also those that are closed already."""
    for writer in writers:
        with suppress(OSError, RuntimeError):
            writer.close()
