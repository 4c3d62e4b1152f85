"""Writes TensorBoard event files without depending on TensorBoard.

An event file is a TFRecord file of `Event` protocol buffers: each record is a length, its checksum,
the bytes of the event and their checksum.
"""

import struct
import time
from collections.abc import Mapping
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # CRC-32C, bits reversed
MASK = 0xA282EAD8  # added to the rotated checksum, as TFRecord requires
START = 1  # SessionLog.START: TensorBoard drops older events of its step and of later ones


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


TABLE = _table()


class EventFile:
    """Writes scalars by step to a new event file, one for each time a run starts or resumes.

    `step` is the first step of this session: scalars that earlier files of the directory hold for
    this step and later are superseded.
    """

    def __init__(self, directory: Path, step: int = 1):
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"events.out.tfevents.{time.time_ns()}.jaxtune").open("xb")
        self._write(_text(3, "brain.Event:2"))
        self._write(_varint(2, step) + _bytes(7, _varint(1, START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes scalars by tag, such as `train/loss`."""
        items = (_bytes(1, _text(1, tag) + _float(2, value)) for tag, value in values.items())
        self._write(_varint(2, step) + _bytes(5, b"".join(items)))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _sum(length) + event + _sum(event))
        self._file.flush()


def _sum(data: bytes) -> bytes:
    """Returns TFRecord's masked CRC-32C: rotated right by 15 bits, plus `MASK`."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)


# Fields of a protocol buffer: a key that joins field number and wire type, then the value.


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _float(field: int, value: float) -> bytes:
    return _number(field << 3 | 5) + struct.pack("<f", value)
