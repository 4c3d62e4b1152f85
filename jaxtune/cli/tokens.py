"""Tokenizers side by side: which numbers are one token, and how many tokens a text takes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtune.checkpoint import hub
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.columns import FEW, few, grid, labelled
from jaxtune.export.distance import SAMPLE

COLUMNS = ("tokenizer", "vocabulary", "alone", "after text", "others take", "a word", "a byte")
SPECIAL = ("tokenizer", "begins", "ends", "fills", "also stops", "adds BOS")


@dataclass(frozen=True)
class Number:
    """A number that is not one token of its own."""

    number: int
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """How the integers from 0 are cut into tokens."""

    single: int  # how many are one token
    lengths: dict[str, int]  # how many integers take so many tokens
    unknown: int  # those with a token that stands for anything unknown
    first: tuple[Number, ...]  # that are not one token


@dataclass(frozen=True)
class Text:
    """The text that tokens are counted on."""

    name: str
    characters: int
    words: int  # between spaces
    bytes: int


@dataclass(frozen=True)
class Facts:
    """What is said of one tokenizer."""

    tokenizer: str
    vocabulary: int
    alone: Numbers  # each a text of its own
    after: Numbers  # each right after another text, such as "Price is $"
    tokens: int  # of the text
    unknown: int  # of these
    per_word: float
    per_byte: float
    special: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Tokenizers side by side."""

    up_to: int
    text: Text
    tokenizers: tuple[Facts, ...]


def report(sources: Sequence[str], text: str | os.PathLike | None, up_to: int) -> Report:
    """The facts of tokenizers, each a directory, a file or a repository of the Hub.

    `text` is a file, by default a page of prose, a list and code; integers reach `up_to`.
    """
    if up_to < 0:
        raise ValueError(f"numbers up to {up_to}: an integer from 0 was expected")
    sample, name = (SAMPLE, "the sample text") if text is None else (_read(text), os.fspath(text))
    about = Text(name, len(sample), len(sample.split()), len(sample.encode()))
    return Report(up_to, about, tuple(facts(source, sample, up_to) for source in sources))


def facts(source: str, text: str, up_to: int) -> Facts:
    """What is said of one tokenizer, on a text and the integers to `up_to`."""
    tokenizer = _opened(source)
    try:
        tokens = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"{source}: the text {error}") from None
    return Facts(
        tokenizer=source,
        vocabulary=len(tokenizer),
        alone=numbers(tokenizer, up_to, continues=False),
        after=numbers(tokenizer, up_to, continues=True),
        tokens=len(tokens),
        unknown=tokens.count(tokenizer.unk),
        per_word=len(tokens) / len(text.split()),
        per_byte=len(tokens) / len(text.encode()),
        special=_special(tokenizer),
    )


def numbers(tokenizer: Tokenizer, up_to: int, *, continues: bool) -> Numbers:
    """How integers are cut, alone or where they continue a text."""
    cut = [tokenizer.encode(str(each), continues=continues) for each in range(up_to + 1)]
    unknown = [tokenizer.unk in ids for ids in cut]
    others = [each for each, ids in enumerate(cut) if len(ids) != 1 or unknown[each]]
    return Numbers(
        single=len(cut) - len(others),
        lengths={str(size): count for size, count in sorted(Counter(map(len, cut)).items())},
        unknown=sum(unknown),
        first=tuple(Number(each, tuple(map(tokenizer.piece, cut[each]))) for each in others[:FEW]),
    )


def table(found: Report) -> str:
    """The report as text."""
    cells = [_cells(facts, found.up_to) for facts in found.tokenizers]
    text = found.text
    return "\n".join(
        [
            f"Integers from 0 to {found.up_to:,} that are one token, alone and right after a text;",
            f"and tokens a word and a byte of {text.name} ({text.bytes:,} bytes).",
            "",
            *grid(COLUMNS, cells, COLUMNS[1:]),
            *(line for facts in found.tokenizers for line in _exceptions(facts)),
            "",
            *grid(SPECIAL, [_special_cells(facts) for facts in found.tokenizers], ()),
        ]
    )


def _read(file: str | os.PathLike) -> str:
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8 ({error})") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ValueError(f"{file} is empty: some text to count tokens on was expected")
    return text


def _opened(source: str) -> Tokenizer:
    path = hub.locate_tokenizer(source)
    try:
        return Tokenizer.open(path)
    except Exception as error:  # the tokenizers package raises that itself
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        told = told.removeprefix(f"{path}: ")
        raise ValueError(f"{source}: no tokenizer can be read there: {told}") from None


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    def entry(number: int | None) -> dict[str, Any] | None:
        return None if number is None else {"id": number, "token": tokenizer.piece(number)}

    roles = {role: entry(getattr(tokenizer, role)) for role in ("bos", "eos", "pad", "unk")}
    stops = [entry(number) for number in tokenizer.stops]
    return {**roles, "stops": stops, "adds_bos": tokenizer.adds_bos}


def _cells(facts: Facts, up_to: int) -> dict[str, str]:
    return {
        "tokenizer": facts.tokenizer,
        "vocabulary": f"{facts.vocabulary:,}",
        "alone": _share(facts.alone, up_to),
        "after text": _share(facts.after, up_to),
        "others take": _others(facts.after),
        "a word": f"{facts.per_word:.2f}",
        "a byte": f"{facts.per_byte:.3f}",
    }


def _share(found: Numbers, up_to: int) -> str:
    return "all" if found.single == up_to + 1 else f"{found.single:,} of {up_to + 1:,}"


def _others(found: Numbers) -> str:
    """`2 to 3`: how many tokens the integers take that are not one."""
    sizes = [int(size) for size in found.lengths if size != "1"]
    if not sizes:
        return ""
    return str(sizes[0]) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"


def _exceptions(facts: Facts) -> list[str]:
    """The first numbers of several tokens, and what a text holds that is unknown."""
    said = {
        where: few([f"{each.number} ({' '.join(each.pieces)})" for each in found.first], count)
        for where, found in (("alone", facts.alone), ("after text", facts.after))
        if (count := sum(found.lengths.values()) - found.single)
    }
    if facts.unknown:
        said["unknown"] = f"{facts.unknown:,} of the {facts.tokens:,} tokens of the text"
    return ["", f"{facts.tokenizer}, not one token:", *labelled(said)] if said else []


def _special_cells(facts: Facts) -> dict[str, str]:
    special = facts.special
    ends = special["eos"]
    others = [stop for stop in special["stops"] if stop != ends]
    return {
        "tokenizer": facts.tokenizer,
        "begins": _entry_text(special["bos"]),
        "ends": _entry_text(ends),
        "fills": _entry_text(special["pad"]),
        "also stops": ", ".join(map(_entry_text, others)) or "none",
        "adds BOS": "yes" if special["adds_bos"] else "no",
    }


def _entry_text(entry: dict[str, Any] | None) -> str:
    return f"{entry['token']} {entry['id']}" if entry else "none"
