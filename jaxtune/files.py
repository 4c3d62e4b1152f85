"""Writes files whole or not at all: a file gets its final name once its bytes are on disk."""

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

# Kinds of paths that cannot be read like a file; reading some of them would wait for ever.
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnwritableError(ValueError):
    """A file or directory that cannot be written where the user asked for it."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(
            f"{path} cannot be written: {error.strerror}; choose another directory with --workdir"
        )


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
