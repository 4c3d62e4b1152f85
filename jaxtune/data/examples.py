"""Encodes rows into examples: tokens, and which of them are scored.

Every example begins with one BOS token if the tokenizer adds it. The prompt is not scored; the
completion and its end token are. No completion is cut unless the settings say so.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from jaxtune.data import images
from jaxtune.data.braces import check_template, fields, filled
from jaxtune.data.errors import DataError, NothingScored, RowError, TooLong, column, known
from jaxtune.data.images import Pictures, Reference
from jaxtune.data.known_templates import MISSING
from jaxtune.data.markup import check_texts
from jaxtune.data.sources import folder
from jaxtune.data.tokenizer import Span, Tokenizer
from jaxtune.display.errors import UserError

TOO_LONG = ("fail", "skip", "cut_prefix", "cut_suffix")


@dataclass(frozen=True, eq=False)
class Example:
    """A row made into tokens, with the positions that are scored."""

    tokens: np.ndarray  # int32[T]
    scored: np.ndarray  # bool[T]; never the first, which no token precedes to predict it
    causal: np.ndarray | None  # bool[T], False in a bidirectional prefix; or None
    place: str
    cut: int = 0  # tokens removed to fit `max_length`
    images: tuple[Reference, ...] = ()  # the pictures that its placeholders stand for

    @property
    def checksum(self) -> int:
        """Checksum of tokens, scored positions and pictures; of a file, its name and size."""
        found = zlib.crc32(self.scored.tobytes(), zlib.crc32(self.tokens.tobytes()))
        for each in self.images:
            if isinstance(each, str):
                each = f"{os.path.basename(each)} {images.size(each)}".encode()
            found = zlib.crc32(each, found)
        return found

    def __post_init__(self):
        if self.scored[0]:
            raise UserError(f"{self.place}: the first token is scored, but no token precedes it")


class Form(Protocol):
    """Interface of the ways in which a row becomes a prompt and a completion."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises DataError if the tokenizer lacks something that this form needs."""
        ...

    def spans(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[Span]:
        """Returns the tokens of a row, without BOS unless the text contains it."""
        ...

    def prompt(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens of the prompt alone; the row needs no completion."""
        ...


@dataclass(frozen=True)
class Template:
    """A prefix and a suffix with columns in braces: `"Describe: {text}\\nColors:"`, `" {colors}"`.

    Special tokens written in the templates are encoded as special tokens; in columns they are plain
    text. Double a brace to write one; `{price:.2f}` formats a value; lists and mappings are JSON.
    The prefix and the suffix are encoded separately, the suffix as a continuation of the prefix.
    """

    prefix: str
    suffix: str
    end: str | None = None  # token that ends a completion; None takes the tokenizer's EOS

    def __post_init__(self):
        for text in (self.prefix, self.suffix):
            check_template(text)

    @property
    def columns(self) -> list[str]:
        """Columns that the templates read."""
        found = [*fields(self.prefix), *fields(self.suffix)]
        return list(dict.fromkeys(name for _, name, *_ in found if name is not None))

    @property
    def asks(self) -> list[str]:
        """Columns that the prefix reads."""
        return list(dict.fromkeys(name for _, name, *_ in fields(self.prefix) if name))

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises DataError if the tokenizer has no end token for completions."""
        _end(tokenizer, self.end)

    def prompt(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens of the prompt."""
        return tokenizer.encode(filled(self.prefix, record, place, tokenizer), special=True)

    def spans(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[Span]:
        """Returns the prompt, and the completion with its end token."""
        texts = [filled(text, record, place, tokenizer) for text in (self.prefix, self.suffix)]
        found = _pair(*texts, place, tokenizer, self.end)
        if found[1].ids.count(found[1].ids[-1]) > 1:
            raise DataError(f"the suffix template {self.suffix!r} writes its end token twice")
        return found


def columns(prefix: str = "prefix", suffix: str = "suffix", end: str | None = None) -> Template:
    """Returns the template for rows whose prompt and completion are each in a column."""
    return Template(f"{{{prefix}}}", f"{{{suffix}}}", end)


Writer = Callable[[Mapping[str, Any], str], str]  # (row, place) -> text


@dataclass(frozen=True)
class Written:
    """Prompt and completion written by functions of a row, such as those of a task.

    Whatever the functions write is encoded as plain text, never as special tokens. `columns` lists
    columns that the file names differently: (name that the functions read, name in the file).
    """

    prefix: Writer
    suffix: Writer
    end: str | None = None  # as in Template
    columns: Sequence[tuple[str, str]] = ()

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises DataError if the tokenizer has no end token for completions."""
        _end(tokenizer, self.end)

    def prompt(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens of the prompt; the row may name its columns either way."""
        renamed = {known: record[theirs] for known, theirs in self.columns if theirs in record}
        text = self.prefix({**record, **renamed}, place)
        return tokenizer.encode(tokenizer.quote(text), special=True)

    def spans(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[Span]:
        """Returns the prompt, and the completion with its end token."""
        renamed = {known: column(record, theirs, place) for known, theirs in self.columns}
        record = {**record, **renamed}
        texts = [tokenizer.quote(write(record, place)) for write in (self.prefix, self.suffix)]
        return _pair(*texts, place, tokenizer, self.end)


@dataclass(frozen=True)
class Chat:
    """Chat messages in a column, written by the tokenizer's chat template."""

    messages: str = "messages"
    turns: str = "all"  # the assistant's turns that are scored: "all" or "last"
    tools: str | None = None  # column of tool schemas; None if there is none
    options: Mapping[str, Any] = field(default_factory=dict)  # variables for the template, by name

    def check(self, tokenizer: Tokenizer) -> None:
        """Raises DataError if the tokenizer has no chat template."""
        if tokenizer.template is None:
            raise DataError(f"{MISSING}; or use data.prefix and data.suffix")

    def prompt(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[int]:
        """Returns the conversation up to where the assistant's turn begins."""
        messages = column(record, self.messages, place)
        given = {self.tools: None, **record}  # what is typed at a terminal comes without tools
        return tokenizer.ask(messages, **self._options(given, place, tokenizer))

    def spans(self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer) -> list[Span]:
        """Returns the conversation, with the assistant's turns scored."""
        messages = column(record, self.messages, place)
        options = self._options(record, place, tokenizer)
        return tokenizer.chat(messages, turns=self.turns, **options)

    def _options(
        self, record: Mapping[str, Any], place: str, tokenizer: Tokenizer
    ) -> dict[str, Any]:
        """Returns the options of the chat template for a row."""
        if self.tools is None:
            return dict(self.options)
        return {**self.options, "tools": _tools(record, self.tools, place, tokenizer)}


@dataclass(frozen=True)
class RowEncoder:
    """Encodes rows into examples; a row that cannot be encoded raises RowError.

    `too_long` decides on rows of more than `max_length` tokens: "fail" and "skip" raise TooLong,
    and a survey leaves the row out under "skip"; "cut_prefix" keeps BOS and the end of the prompt;
    "cut_suffix" keeps the prompt, the beginning of the last answer and its end token. A row that
    is still too long after the cut raises TooLong. With `pictures`, each example begins with their
    placeholder tokens, which count towards `max_length`.
    """

    tokenizer: Tokenizer
    form: Form
    max_length: int
    too_long: str = "fail"
    full_prefix: bool = False  # prefix tokens attend to each other both ways, as in PaliGemma
    pictures: Pictures | None = None  # picture size and placeholders; None for text alone
    image: str = "image"  # column of the pictures
    image_root: str = ""  # folder of relative paths; "" takes that of the row's file

    def __post_init__(self):
        known("too_long", self.too_long, TOO_LONG)
        if self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; expected at least 2 tokens")
        self.form.check(self.tokenizer)

    def __call__(self, record: Mapping[str, Any], place: str) -> Example:
        with _placed(place):
            _check_record(record)
            shown = self.pictures_of(record, place)
            spans = self.form.spans(record, place, self.tokenizer)
        tokens, scored = self._joined(spans, len(shown))
        if not scored.any():
            raise NothingScored(place, "the row has no completion to learn")
        keep = self._fitting(tokens, scored, self.placeholders(len(shown)), place)
        tokens, scored, cut = tokens[keep], scored[keep], len(tokens) - len(keep)
        causal = np.arange(len(tokens)) >= np.argmax(scored) if self.full_prefix else None
        return Example(tokens, scored, causal, place, cut, shown)

    def prompt(self, record: Mapping[str, Any], place: str) -> list[int]:
        """Returns the tokens of a row's prompt, with picture placeholders and BOS."""
        with _placed(place):
            _check_record(record)
            shown = self.pictures_of(record, place)
            ids = self.form.prompt(record, place, self.tokenizer)
        return self._joined([Span(ids, False)], len(shown))[0].tolist()

    def pictures_of(self, record: Mapping[str, Any], place: str) -> tuple[Reference, ...]:
        """Returns a row's pictures, checked by `images.check`; () if the model takes none."""
        if self.pictures is None:
            return ()
        if self.image not in record:
            raise RowError(
                place,
                f"no picture column {self.image!r}; the columns are "
                f"{', '.join(map(repr, record))}; set data.image to one of them, or to '' for text "
                "only",
            )
        start = os.path.expanduser(self.image_root) or folder(place) or "."
        value = column(record, self.image, place)
        found = images.references(value, self.image, start, place)
        for each in found:
            images.check(each, place)
        return found

    def pixels(self, record: Mapping[str, Any], place: str) -> np.ndarray | None:  # [I, S, S, 3]
        """Returns the pixels of a row's pictures, or None if the model takes none."""
        if self.pictures is None:
            return None
        size = self.pictures.size
        return np.stack(
            [images.read(each, size, place) for each in self.pictures_of(record, place)]
        )

    def placeholders(self, shown: int) -> int:
        """Returns the number of placeholder tokens for `shown` pictures."""
        return shown * self.pictures.tokens if self.pictures else 0

    def _joined(self, spans: Sequence[Span], shown: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns int32[T] tokens and bool[T] scored positions, with placeholders and BOS."""
        bos = self.tokenizer.bos
        first = next((span.ids[0] for span in spans if span.ids), None)
        if self.tokenizer.adds_bos and first != bos:
            spans = [Span([bos], False), *spans]
        tokens = np.array([number for span in spans for number in span.ids], np.int32)
        scored = np.repeat([span.scored for span in spans], [len(span.ids) for span in spans])
        if len(tokens) > 1 and bos is not None and tokens[0] == tokens[1] == bos:
            raise DataError("the template writes BOS twice; the model expects it once")
        if shown:
            before = (self.placeholders(shown), 0)
            tokens = np.pad(tokens, before, constant_values=self.pictures.token)
            scored = np.pad(scored, before)
        scored[:1] = False
        return tokens, scored

    def _fitting(
        self, tokens: np.ndarray, scored: np.ndarray, pictured: int, place: str
    ) -> np.ndarray:
        """Returns the indices of the tokens to keep (int64[<= max_length]), as `too_long` says."""
        everything = np.arange(len(tokens))
        excess = len(tokens) - self.max_length
        if excess <= 0:
            return everything
        first, last = np.flatnonzero(scored)[[0, -1]]
        if self.too_long.startswith("cut"):
            # Tokens after the last scored one do not affect the loss.
            everything, excess = everything[: last + 1], excess - (len(tokens) - last - 1)
        start, room = 0, 0
        if self.too_long == "cut_prefix":
            start = pictured + int(tokens[pictured] == self.tokenizer.bos)
            room = first - max(start, 1)  # one token is kept to predict the first scored one
        elif self.too_long == "cut_suffix":
            answer = np.flatnonzero(~scored[: last + 1])[-1] + 1  # where the last answer begins
            room = last - answer - 1  # its first token and the end token are kept
            start = last - max(excess, 0)
        if excess > room:
            raise TooLong(place, self._too_long(len(tokens), first, pictured), len(tokens))
        return np.delete(everything, slice(start, start + max(excess, 0)))

    def _too_long(self, length: int, prefix: int, pictured: int) -> str:
        advice = {
            "fail": '; raise it, or set data.too_long to "skip" or "cut_prefix"',
            "skip": "",
            "cut_prefix": "; cutting the prompt is not enough",
            "cut_suffix": "; cutting the last answer is not enough",
        }[self.too_long]
        shown = f"pictures {pictured:,}, " if pictured else ""
        return (
            f"the row has {length:,} tokens ({shown}prompt {prefix - pictured:,}, completion "
            f"{length - prefix:,}), but batch.max_length is {self.max_length:,}{advice}"
        )


@contextlib.contextmanager
def _placed(place: str) -> Iterator[None]:
    """Turns errors of encoding a row into RowErrors, which begin with its place."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise RowError(place, str(error)) from None
    except RecursionError:
        raise RowError(place, "its values are nested too deep") from None


def _check_record(record: Mapping[str, Any]) -> None:
    """Raises ValueError for a text in any column that UTF-8 cannot encode."""
    for name, value in record.items():
        check_texts(name, "a column's name")
        check_texts(value, f"column {name!r}")


def _tools(
    record: Mapping[str, Any], name: str, place: str, tokenizer: Tokenizer
) -> list[Mapping[str, Any]] | None:
    """Returns the tool schemas in a column, which may be JSON text, or None if there are none."""
    found = record[name] if record.get(name, "") is None else column(record, name, place)
    if isinstance(found, str):
        try:
            found = json.loads(found or "null")
        except ValueError as error:
            raise RowError(place, f"column {name!r} is no JSON: {error}") from None
    if found is not None and not (
        isinstance(found, list | tuple) and all(isinstance(each, Mapping) for each in found)
    ):
        raise RowError(
            place, f"column {name!r} is {repr(found)[:60]}; expected a list of tool schemas"
        )
    return tokenizer.quote(list(found)) if found else None


def _pair(
    prefix: str, suffix: str, place: str, tokenizer: Tokenizer, end: str | None
) -> list[Span]:
    """Encodes prompt and completion separately, and appends the end token to the completion."""
    if not suffix:
        raise NothingScored(place, "the suffix is empty")
    before = tokenizer.encode(prefix, special=True)
    after = tokenizer.encode(suffix, special=True, continues=bool(prefix))
    last = _end(tokenizer, end)
    return [Span(before, False), Span(after if after[-1:] == [last] else [*after, last], True)]


def _end(tokenizer: Tokenizer, name: str | None) -> int:
    found = tokenizer.eos if name is None else tokenizer.id(name)
    if found is None:
        raise DataError("the tokenizer defines no end token (EOS); specify one as `end`")
    return found
