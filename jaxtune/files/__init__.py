"""Writes files whole or not at all, and reads JSON files that may be damaged or hostile.

A written file gets its final name once its bytes are on disk.
"""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jaxtune.display.errors import UserError

# Kinds of paths that cannot be read like a file; reading some of them would wait for ever.
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
NUMBER = (int, float)
LARGEST_NUMBER = 1e18  # of a JSON file whose shape is checked; NaN and infinity are refused, too
MOST_JSON = 16 * 2**20  # bytes of a JSON file; a larger one is refused before it is parsed


class UnreadableError(UserError):
    """A file that is there, but cannot be read as what it should be."""


class UnwritableError(UserError):
    """A file or directory that cannot be written where it should be."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(f"{path} cannot be written: {error.strerror}")
        self.path = path


@contextlib.contextmanager
def whole_file(final: Path, partial: Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `final`, and renames it to `final` if the block succeeds.

    The temporary file is `partial`, or else a hidden file with a random name. It is flushed to disk
    before it is renamed, and removed if the block or the writing fails.
    """
    partial = partial or final.with_name(f".{final.name}.partial-{secrets.token_hex(8)}")
    try:
        with partial.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        partial.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(file: Path, text: str) -> None:
    """Writes a UTF-8 text file whole or not at all, and creates its folder if that is missing.

    Lone surrogates, which UTF-8 cannot hold, become escapes, as JSON writes them.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as out:
            out.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise UnwritableError(file, error) from None


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; raises ValueError for NaN and infinity."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def special_kind(path: str | Path) -> str:
    """Returns what is at a path if it is no regular file, such as "a named pipe", or else ""."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing, or no valid path: opening it reports that
        return ""
    return next((kind for matches, kind in KINDS if matches(mode)), "")


def read_json(file: Path, shape: Any = object, *, most: int = MOST_JSON) -> Any:
    """Returns the content of a JSON file in UTF-8, with or without a byte order mark.

    Args:
      file: The file, or a link to it.
      shape: What it must contain, as `misfit` describes it; `object` stands for anything.
      most: Bytes that it may have.

    Raises:
      FileNotFoundError: If there is no such file.
      UnreadableError: If it is no regular file, is too large, is not JSON, is nested too deeply, or
        has another shape.
    """
    try:
        about = file.stat()
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            raise UnreadableError(f"{file} is not a regular file; expected JSON")
        if about.st_size > most:
            raise UnreadableError(
                f"{file} has {about.st_size:,} bytes; expected JSON of at most {most:,} bytes"
            )
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise UnreadableError(f"{file} cannot be read: {error.strerror}") from None
    try:
        content = json.loads(text.decode("utf-8-sig"))
    except RecursionError:
        raise UnreadableError(
            f"{file} is not valid JSON (it is nested too deeply); repair or remove it"
        ) from None
    except ValueError as error:
        raise UnreadableError(f"{file} is not valid JSON ({error}); repair or remove it") from None
    if problem := misfit(content, shape):
        raise UnreadableError(f"{file} is not valid ({problem}); repair or remove it")
    return content


def misfit(content: Any, shape: Any, place: str = "") -> str:
    """Describes where parsed JSON differs from a shape; returns "" if it fits.

    Args:
      content: The parsed JSON.
      shape: A type; None; `object` for anything; a tuple of shapes of different types, of which
        one must fit; `[shape]`, a list of such elements; or a mapping from keys to shapes. In it, a
        key that ends in "?" may
        be missing, and the key `...` stands for all keys that are not named. Others are ignored.
      place: Where the content is in the file, for the description.

    Returns:
      The description, such as "files: expected an object, found a list".
    """
    if shape is object:
        return ""
    if isinstance(shape, tuple):
        alike = [each for each in shape if _kind_of(each) is type(content)]
        return misfit(content, alike[0] if alike else shape[0], place)
    kind = _kind_of(shape)
    if type(content) is not kind:
        where = f"{place}: " if place else ""
        return f"{where}expected {_NAMES[kind]}, found {_NAMES[type(content)]}"
    if kind in NUMBER and not abs(content) < LARGEST_NUMBER:
        return f"{place or 'it'} is beyond all bounds"
    if isinstance(shape, list):
        parts = [(str(at), each, shape[0]) for at, each in enumerate(content)]
    elif isinstance(shape, dict):
        named = {key.removesuffix("?"): each for key, each in shape.items() if key is not ...}
        lacking = [key for key in shape if key is not ... and not key.endswith("?")]
        if missing := [key for key in lacking if key not in content]:
            return f"{place or 'it'} lacks {missing[0]!r}"
        others = shape.get(..., object)
        parts = [(key, each, named.get(key, others)) for key, each in content.items()]
        parts = [each for each in parts if each[2] is not object]
    else:
        return ""
    told = (misfit(each, its, f"{place}.{key}" if place else key) for key, each, its in parts)
    return next(filter(None, told), "")


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _kind_of(shape: Any) -> type:
    return shape if isinstance(shape, type) else type(shape)
