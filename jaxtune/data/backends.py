"""One small interface for the two kinds of tokenizer files: plain text to ids and back.

`encode` never makes a special token of text that looks like one. With `continues`, the text is
encoded as the continuation of another, without the space that some models put before every text.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.data.errors import DataError

NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"  # sets normalizer_spec.add_dummy_prefix to false
TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")  # tokens of turns in templates, such as [INST]


@dataclass(frozen=True)
class Special:
    """A special token; `lstrip` and `rstrip` tell whether it removes the whitespace beside it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


class SentencePiece:
    """Backend of a SentencePiece `.model`."""

    spaced_after_special = False

    def __init__(self, file: Path):
        self.file = file
        with _named(file, "cannot be read"):
            self._open(file)

    def _open(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        proto = file.read_bytes()
        self._begin = SentencePieceProcessor(model_proto=proto)
        # Protocol buffers merge appended bytes, so this overrides one field of the file.
        self._continue = SentencePieceProcessor(model_proto=proto + NO_DUMMY_PREFIX)
        self.size = self._begin.vocab_size()
        control = self._begin.is_control(list(range(self.size)))
        numbers = [number for number in range(self.size) if control[number]]
        self.specials = [Special(number, self.piece(number)) for number in numbers]

    def encode(self, text: str, continues: bool) -> list[int]:
        """Returns the ids of a plain text."""
        with _named(self.file, "cannot encode a text"):
            return (self._continue if continues else self._begin).encode(text)

    def decode(self, ids: Sequence[int], begins: bool) -> str:
        """Returns the text of ids that are not special, without the space before a text."""
        with _named(self.file, "cannot decode tokens"):
            return (self._begin if begins else self._continue).decode(list(ids))

    def piece(self, number: int) -> str:
        """Returns a token as the file spells it."""
        return self._begin.id_to_piece(number)

    def id(self, piece: str) -> int | None:
        """Returns the id of a piece that exists."""
        number = self._begin.piece_to_id(piece)
        known = 0 <= number < self.size and self._begin.id_to_piece(number) == piece
        return number if known else None


class TokenizerJson:
    """Backend of a `tokenizer.json`, read by the `tokenizers` package."""

    def __init__(self, file: Path):
        self.file = file
        with _named(self.file, "cannot be read"):
            self._open(file)

    def _open(self, file: Path) -> None:
        from tokenizers import Tokenizer

        self._begin = self._continue = _bare(Tokenizer.from_file(str(file)))
        self.size = self._begin.get_vocab_size()
        rules = _rules(self._begin)
        # Some files put a space before a whole text, others also before text after a special token.
        self.spaced_after_special = any(map(_spaces_everything, rules))
        if self.spaced_after_special or any(map(_spaces_first, rules)):
            state = _unspaced(json.loads(self._begin.to_str()))
            self._continue = _bare(Tokenizer.from_str(json.dumps(state)))
        added = self._begin.get_added_tokens_decoder().items()
        self.specials = [
            Special(number, token.content, token.lstrip, token.rstrip)
            for number, token in added
            if token.special
        ]

    def encode(self, text: str, continues: bool) -> list[int]:
        """Returns the ids of a plain text."""
        chosen = self._continue if continues else self._begin
        with _named(self.file, "cannot encode a text"):
            return chosen.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], begins: bool) -> str:
        """Returns the text of ids that are not special, without the space before a text."""
        with _named(self.file, "cannot decode tokens"):
            if begins or self._continue is self._begin:
                return self._begin.decode(ids, skip_special_tokens=False)
            # Decoders drop a leading space, so the ids are decoded after an "a", which is removed.
            first = self._begin.encode("a", add_special_tokens=False).ids
            whole = self._begin.decode([*first, *ids], skip_special_tokens=False)
            return whole.removeprefix("a")

    def piece(self, number: int) -> str:
        """Returns a token as the file spells it."""
        return self._begin.id_to_token(number) or ""

    def id(self, piece: str) -> int | None:
        """Returns the id of a piece that exists."""
        return self._begin.token_to_id(piece)


def added_specials(settings: dict[str, Any], added: dict[str, int]) -> list[Special]:
    """Returns the special tokens that tokenizer_config.json and added_tokens.json add."""
    listed = {
        int(number): entry for number, entry in (settings.get("added_tokens_decoder") or {}).items()
    }
    plain = {entry["content"] for entry in listed.values() if not entry.get("special")}
    return [
        *(
            Special(number, entry["content"], bool(entry.get("lstrip")), bool(entry.get("rstrip")))
            for number, entry in listed.items()
            if entry.get("special")
        ),
        *(Special(number, text) for text, number in added.items() if text not in plain),
    ]


def tags(backend: SentencePiece | TokenizerJson, template: str) -> list[Special]:
    """Returns the turn tokens of a chat template that a SentencePiece file would match in text."""
    if isinstance(backend, TokenizerJson):  # such a file lists its special tokens
        return []
    found = {text: backend.id(text) for text in TAG.findall(template)}
    return [Special(number, text) for text, number in found.items() if number is not None]


@contextlib.contextmanager
def _named(file: Path, what: str) -> Iterator[None]:
    """Names the file in errors of the packages that read it, which can be of any kind."""
    try:
        yield
    except BaseException as error:
        # A panic of the Rust code of `tokenizers` derives from BaseException alone.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            advice = "download the file again, or mend it"
            raise DataError(f"{file} {what}: {error}; {advice}") from None
        raise


def _bare(tokenizer: Any) -> Any:
    """Returns the tokenizer without matching of special tokens, truncation and padding."""
    tokenizer.encode_special_tokens = True  # encodes special tokens in a text as plain text
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _rules(tokenizer: Any) -> list[dict[str, Any]]:
    """Returns the steps of a tokenizer's normalizer and pre-tokenizer, as in its file."""
    parts = [part for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part is not None]
    states = [json.loads(part.__getstate__()) for part in parts]
    return [step for state in states for step in _steps(state)]


def _steps(state: dict[str, Any]) -> Collection[dict[str, Any]]:
    inner = state.get("normalizers") or state.get("pretokenizers") or ()
    return [state, *(step for each in inner for step in _steps(each))]


def _spaces_everything(step: dict[str, Any]) -> bool:
    kind = step.get("type")
    return (
        kind == "Prepend"
        or (kind == "ByteLevel" and bool(step.get("add_prefix_space")))
        or (kind == "Metaspace" and step.get("prepend_scheme", "always") == "always")
    )


def _spaces_first(step: dict[str, Any]) -> bool:
    return step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"


def _unspaced(state: dict[str, Any]) -> dict[str, Any]:
    """Changes a parsed tokenizer.json so that it puts no space before a text."""
    for part in ("normalizer", "pre_tokenizer"):
        for step in _steps(state[part] or {}):
            if step.get("type") == "Prepend":
                step["prepend"] = ""
            elif step.get("type") == "ByteLevel":
                step["add_prefix_space"] = False
            elif step.get("type") == "Metaspace":
                step["prepend_scheme"] = "never"
    return state
