"""Compares tokenizers: which integers are single tokens, and how many tokens a text takes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtune.checkpoint import sources
from jaxtune.data.tokenizer import Tokenizer
from jaxtune.display.columns import FEW, few, grid, labelled
from jaxtune.display.errors import UserError
from jaxtune.export.distance import SAMPLE
from jaxtune.files.fetched import local

COLUMNS = ("tokenizer", "vocabulary", "alone", "after text", "others", "per word", "per byte")
SPECIAL = ("tokenizer", "BOS", "EOS", "padding", "other stops", "adds BOS")


@dataclass(frozen=True)
class Number:
    """An integer that is not a single token, with the tokens it is cut into."""

    number: int
    pieces: tuple[str, ...]  # tokens as the tokenizer's file writes them


@dataclass(frozen=True)
class Numbers:
    """How a tokenizer cuts the integers from 0 up into tokens."""

    single: int  # how many are one known token
    lengths: dict[str, int]  # number of tokens -> how many integers take so many
    unknown: int  # how many contain the unknown token
    first: tuple[Number, ...]  # the first few that are not one known token


@dataclass(frozen=True)
class Text:
    """The text whose tokens are counted."""

    name: str
    characters: int
    words: int  # separated by whitespace
    bytes: int


@dataclass(frozen=True)
class Facts:
    """The results for one tokenizer."""

    tokenizer: str
    vocabulary: int
    alone: Numbers  # each integer encoded as a text of its own
    after: Numbers  # each encoded right after another text, such as "Price is $"
    tokens: int  # of the text
    unknown: int  # of these, those that are the unknown token
    per_word: float  # tokens
    per_byte: float  # tokens
    special: dict[str, Any]  # special tokens by role, stop tokens, and whether BOS is added


@dataclass(frozen=True)
class Report:
    """The comparison of several tokenizers."""

    up_to: int  # the largest integer
    text: Text
    tokenizers: tuple[Facts, ...]


def report(sources: Sequence[str], text: str | os.PathLike | None, up_to: int) -> Report:
    """Compares tokenizers on a text and on the integers from 0 to `up_to`.

    Each source is a directory, a file or a Hub repository. `text` is a file; by default, tokens are
    counted on a sample of prose, a list and code.
    """
    if up_to < 0:
        raise UserError(f"integers up to {up_to}: expected 0 or more")
    sample, name = (SAMPLE, "the sample text") if text is None else (_read(text), os.fspath(text))
    about = Text(name, len(sample), len(sample.split()), len(sample.encode()))
    return Report(up_to, about, tuple(facts(source, sample, up_to) for source in sources))


def facts(source: str, text: str, up_to: int) -> Facts:
    """Evaluates one tokenizer on a text and on the integers from 0 to `up_to`."""
    tokenizer = _opened(source)
    try:
        tokens = tokenizer.encode(text)
    except ValueError as error:
        raise UserError(f"{source}: the text {error}") from None
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
    """Returns how integers are cut into tokens: alone, or with `continues` after a text."""
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
    """Formats a comparison as text."""
    cells = [_cells(facts, found.up_to) for facts in found.tokenizers]
    text = found.text
    return "\n".join(
        [
            f"Integers from 0 to {found.up_to:,} that are a single token, alone and after text;",
            f"and tokens per word and per byte of {text.name} ({text.bytes:,} bytes).",
            "",
            *grid(COLUMNS, cells, COLUMNS[1:]),
            *(line for facts in found.tokenizers for line in _exceptions(facts)),
            "",
            *grid(SPECIAL, [_special_cells(facts) for facts in found.tokenizers], ()),
        ]
    )


def _read(file: str | os.PathLike) -> str:
    try:
        with local(file).open(encoding="utf-8") as stream:
            text = stream.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error})") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{file} is empty: expected text to count tokens in")
    return text


def _opened(source: str) -> Tokenizer:
    path = sources.locate_tokenizer(source)
    try:
        return Tokenizer.open(path)
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{source}: cannot read a tokenizer: {reason}") from None


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
        "others": _others(facts.after),
        "per word": f"{facts.per_word:.2f}",
        "per byte": f"{facts.per_byte:.3f}",
    }


def _share(found: Numbers, up_to: int) -> str:
    return "all" if found.single == up_to + 1 else f"{found.single:,} of {up_to + 1:,}"


def _others(found: Numbers) -> str:
    """Returns the range of the token counts above 1, such as `2 to 3 tokens`."""
    sizes = [int(size) for size in found.lengths if size != "1"]
    if not sizes:
        return ""
    size = str(sizes[0]) if len(sizes) == 1 else f"{min(sizes)} to {max(sizes)}"
    return f"{size} tokens"


def _exceptions(facts: Facts) -> list[str]:
    """Returns lines with the first integers of several tokens, and the text's unknown tokens."""
    lines = {
        where: few([f"{each.number} ({' '.join(each.pieces)})" for each in found.first], count)
        for where, found in (("alone", facts.alone), ("after text", facts.after))
        if (count := sum(found.lengths.values()) - found.single)
    }
    if facts.unknown:
        lines["unknown"] = f"{facts.unknown:,} of the {facts.tokens:,} tokens of the text"
    return ["", f"{facts.tokenizer}, not a single token:", *labelled(lines)] if lines else []


def _special_cells(facts: Facts) -> dict[str, str]:
    special = facts.special
    eos = special["eos"]
    others = [stop for stop in special["stops"] if stop != eos]
    return {
        "tokenizer": facts.tokenizer,
        "BOS": _entry_text(special["bos"]),
        "EOS": _entry_text(eos),
        "padding": _entry_text(special["pad"]),
        "other stops": ", ".join(map(_entry_text, others)) or "none",
        "adds BOS": "yes" if special["adds_bos"] else "no",
    }


def _entry_text(entry: dict[str, Any] | None) -> str:
    return f"{entry['token']} {entry['id']}" if entry else "none"
