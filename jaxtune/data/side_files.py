"""Reads the small files of a tokenizer, and checks the values that are used from them.

A file that exists must be valid: one that is damaged is never treated as if it were missing.
"""

import contextlib
import gc
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxtune.data.errors import DataError
from jaxtune.data.markup import half_character
from jaxtune.display.errors import UserError

# A tokenizer file of any other name ignores the settings beside it.
STANDARD = ("tokenizer.json", "tokenizer.model")
LARGEST = 2**28  # bytes; published tokenizer files have up to 40 MB
IDS = 2**31  # token ids are int32
NUMBER = re.compile("[0-9]{1,10}")


class SideFiles:
    """The files of a directory, or one tokenizer file with the settings that apply to it.

    The settings beside a file apply to it if it has a standard name. With `strict`, a damaged file
    raises DataError; without it, the damage is noted in `problems`, and the file or the damaged
    value counts as missing.
    """

    def __init__(self, path: Path, strict: bool):
        self.chosen = None if path.is_dir() else path.name
        self.directory = path if path.is_dir() else path.parent
        self.strict = strict
        self.problems: list[str] = []
        self.damaged: set[str] = set()  # names of the files that have problems
        self._parsed: dict[str, dict[str, Any]] = {}

    def has(self, name: str) -> bool:
        """Returns whether a file exists and applies to this tokenizer."""
        alone = self.chosen is not None and self.chosen not in STANDARD
        if alone and name != self.chosen:
            return False
        return os.path.lexists(self.directory / name)

    def read(self, name: str) -> bytes:
        """Returns the bytes of a file; raises an error if it is not a regular one or too large."""
        return regular_bytes(self.directory / name)

    def json(self, name: str) -> dict[str, Any]:
        """Returns a file's JSON object; {} if the file is missing."""
        if name not in self._parsed:
            self._parsed[name] = self._json(name) if self.has(name) else {}
        return self._parsed[name]

    def template(self) -> str | None:
        """Returns the chat template, or None; of several, the one named "default"."""
        if self.has("chat_template.jinja"):
            with self.noted("chat_template.jinja"):
                return self.read("chat_template.jinja").decode("utf-8")
            return None
        older = "chat_template.json"
        name = older if self.has(older) else "tokenizer_config.json"
        found = self.json(name).get("chat_template")
        if isinstance(found, list):
            found = {each["name"]: each["template"] for each in found}
        return found.get("default") if isinstance(found, dict) else found

    @contextlib.contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Turns an error of reading a file into a DataError that names it, or into a note."""
        try:
            yield
        except DataError:
            raise
        # MemoryError and RecursionError come from absurd files, RuntimeError from SentencePiece.
        except (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
                TypeError, ValueError) as error:  # fmt: skip
            problem = f"{name} cannot be read: {_reason(error)}"
            if self.strict:
                advice = "download the file again, or mend it"
                raise DataError(f"{self.directory}: {problem}; {advice}") from None
            self.problems.append(problem)
            self.damaged.add(name)

    def _json(self, name: str) -> dict[str, Any]:
        with self.noted(name), _uncollected():
            parsed = json.loads(self.read(name))
            if not isinstance(parsed, dict):
                raise Unusable(f"expected a JSON object, found a {type(parsed).__name__}")
            return {field: self._value(name, field, value) for field, value in parsed.items()}
        return {}

    def _value(self, name: str, field: str, value: Any) -> Any:
        """Returns the value of a field, or None after a note that it is not what it must be."""
        for pattern, expected, valid in FIELDS.get(name, ()):
            if pattern.fullmatch(field) and not valid(value):
                with self.noted(name):
                    found = f"{json.dumps(value)[:80]}"
                    raise Unusable(f"{field!r} is {found}; expected {expected}")
                return None
        return value


class Unusable(UserError):
    """A file that can be read, but not used."""


def _reason(error: Exception) -> str:
    """Returns what an error of reading a file says, for people."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, json.JSONDecodeError):
        return f"it is not valid JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text: {error}"
    if isinstance(error, RecursionError | MemoryError):
        return "it is nested too deep, or too large"
    if isinstance(error, AttributeError | LookupError | TypeError):
        return f"it lacks the expected structure ({type(error).__name__}: {error})"
    return str(error)


def regular_bytes(file: Path) -> bytes:
    """Returns the bytes of a regular file; raises OSError or Unusable for anything else.

    A named pipe or a device would block or never end.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a null byte in the path
        raise Unusable(str(error)) from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Unusable("expected a regular file")
        if found.st_size > LARGEST:
            raise Unusable(f"it has {found.st_size:,} bytes; expected at most {LARGEST:,}")
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector.

    With it, parsing the half a million merges of Gemma's tokenizer takes four times as long.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and half_character(value) is None


def _is_token(value: Any) -> bool:
    content = value.get("content") if isinstance(value, Mapping) else value
    return value is None or _is_text(content)


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < IDS


def _is_stop(value: Any) -> bool:
    return value is None or all(map(_is_id, value if isinstance(value, list) else [value]))


def _is_switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _are_added(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(NUMBER.fullmatch(number) and int(number) < IDS for number in value)
        and all(isinstance(entry, Mapping) for entry in value.values())
        and all(_is_text(entry.get("content")) for entry in value.values())
    )


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        named = [each for each in value if isinstance(each, Mapping)]
        texts = [each.get(key) for each in named for key in ("name", "template")]
        return len(named) == len(value) and all(map(_is_text, texts))
    texts = value.values() if isinstance(value, Mapping) else [value]
    return value is None or all(map(_is_text, texts))


def _is_section(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and _is_stop(value.get("eos_token_id")))


Check = tuple[re.Pattern[str], str, Callable[[Any], bool]]  # field, what is expected, validity

_TOKEN: Check = (
    re.compile("(bos|eos|pad|unk)_token"),
    "a text, an object with a text as its content, or null",
    _is_token,
)
_TEMPLATE: Check = (
    re.compile("chat_template"),
    "a text, or a list of objects with a name and a template",
    _is_template,
)
_STOPS: Check = (
    re.compile("(bos|eos|pad)_token_id"),
    "a token id, a list of ids, or null",
    _is_stop,
)
FIELDS: dict[str, tuple[Check, ...]] = {
    "tokenizer_config.json": (
        _TOKEN,
        _TEMPLATE,
        (re.compile("add_bos_token"), "true, false or null", _is_switch),
        (
            re.compile("added_tokens_decoder"),
            "an object of token ids, each with an object that has a text as its content",
            _are_added,
        ),
    ),
    "special_tokens_map.json": (_TOKEN,),
    "chat_template.json": (_TEMPLATE,),
    "added_tokens.json": ((re.compile(".*", re.DOTALL), "a token id", _is_id),),
    "generation_config.json": (_STOPS,),
    "config.json": (
        _STOPS,
        (re.compile("text_config"), "an object with valid token ids, or null", _is_section),
    ),
}
