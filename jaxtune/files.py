"""Writes files whole or not at all, and reads JSON files with a check of their shape.

A file gets its final name once its bytes are on disk.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

LARGEST_JSON = 64 * 2**20  # bytes of a JSON file that is read; a report has some thousands
NUMBER = (int, float)
LARGEST_NUMBER = 1e18  # of a JSON file; NaN and infinity are refused, too


class UnwritableError(ValueError):
    """A file or directory that cannot be written where the user asked for it."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(
            f"{path} cannot be written: {error.strerror}; choose another directory with --workdir"
        )


@contextlib.contextmanager
def whole_file(final: Path, partial: Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `final`, and renames it to `final` if the block succeeds.

    The temporary file is `partial`, or else a hidden file with the process id in its name. It is
    flushed to disk before it is renamed, and removed if the block or the writing fails.
    """
    partial = partial or final.with_name(f".{final.name}.partial-{os.getpid()}")
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
    """Writes a UTF-8 text file whole or not at all, and creates its folder if that is missing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as out:
            out.write(text.encode())
    except OSError as error:
        raise UnwritableError(file, error) from None


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; raises ValueError for NaN and infinity."""
    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(file: Path, shape: Any = dict) -> Any:
    """Reads a JSON file that has the given shape; raises ValueError if it is damaged or another.

    Args:
      file: The file. If it is missing, FileNotFoundError or NotADirectoryError is raised.
      shape: The expected content, as `misfit` describes it.

    Returns:
      The parsed content.
    """
    try:
        size = file.stat().st_size if file.is_file() else None
        if size is None and file.exists():
            raise ValueError("it is not a regular file")
        if size is not None and size > LARGEST_JSON:
            raise ValueError(f"it has {size:,} bytes, and at most {LARGEST_JSON:,} are read")
        content = json.loads(file.read_bytes())
        if problem := misfit(content, shape):
            raise ValueError(problem)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError(f"{file} is not valid: it is nested too deeply; {_MEND}") from None
    except ValueError as error:
        kind = "not valid JSON" if isinstance(error, _UNPARSED) else "not valid"
        raise ValueError(f"{file} is {kind} ({error}); {_MEND}") from None
    return content


_MEND = "repair or remove it"
_UNPARSED = (json.JSONDecodeError, UnicodeDecodeError)


def misfit(content: Any, shape: Any, place: str = "") -> str:
    """Describes where parsed JSON differs from a shape; returns "" if it fits.

    Args:
      content: The parsed JSON.
      shape: A type; None; a tuple of shapes of different types, of which one must fit; `[shape]`, a
        list of such elements; or a mapping from keys to shapes. In it, a key that ends in "?" may
        be missing, and the key `...` stands for all keys that are not named. Others are ignored.
      place: Where the content is in the file, for the description.

    Returns:
      The description, such as "files: expected an object, found a list".
    """
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
