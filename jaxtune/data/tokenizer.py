"""Encodes text to token ids and decodes it, as the files of a checkpoint define.

Two decisions:

- **Special tokens in data are plain text.** `<eos>` in a row is encoded as those five characters,
  whatever the tokenizer file says. Only chat templates and the templates of a config can write
  special tokens; the values filled into them are passed through `quote`.
- **Prompt and completion are encoded separately.** A prompt is encoded alone in generation, so it
  is in training too, and no token spans the border. `continues=True` encodes the second text
  without the space that some models put before every text, so that the concatenated ids decode to
  the concatenated texts.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtune.data.backends import SentencePiece, Special, TokenizerJson, added_specials, tags
from jaxtune.data.chat import ChatTemplate, Region
from jaxtune.data.errors import DataError
from jaxtune.data.known_templates import MISSING
from jaxtune.data.markup import Markup, Piece, half_character, unmarked
from jaxtune.data.side_files import SideFiles
from jaxtune.data.vocabulary import ROLES, tokenizer_facts
from jaxtune.display.errors import UserError

ANY_ROWS = 2**31  # rows of the embedding, where there is no model to read them from


@dataclass(frozen=True)
class Span:
    """Consecutive tokens that are all scored, or all not."""

    ids: list[int]
    scored: bool


class Tokenizer:
    """Tokenizer of a SentencePiece `.model` or a `tokenizer.json`, with the settings beside it."""

    def __init__(
        self,
        backend: SentencePiece | TokenizerJson,
        specials: Iterable[Special],
        facts: Mapping[str, Any],
    ):
        self._backend = backend
        self.specials: dict[str, Special] = {}  # by text; the first wins
        for special in specials:
            self.specials.setdefault(special.text, special)
        self.markup = Markup(self.specials)
        self.template: ChatTemplate | None = None
        numbers = {role: (facts["special"][role] or {}).get("id") for role in ROLES}
        self.bos, self.eos, self.pad, self.unk = (numbers[role] for role in ROLES)
        stops = {self.eos, *(stop["id"] for stop in facts["stops"])}
        self.stops = tuple(sorted(stops - {None}))  # ids that end a text or a turn
        # SentencePiece files do not state it; models that have a BOS expect it before every text.
        declared = facts["adds_bos"]
        self.adds_bos: bool = self.bos is not None if declared is None else declared
        self.problems: list[str] = facts["problems"]  # problems found in the files
        self._forbidden = {special.id for special in self.specials.values()} - {self.unk}
        self._texts = {special.id: special.text for special in self.specials.values()}

    @classmethod
    def open(
        cls, path: str | Path, *, template: str | None = None, today: str | None = None
    ) -> "Tokenizer":
        """Opens the tokenizer of a directory or file.

        `template` replaces its chat template; the token that ends its answers is then among the
        stops. `today`, such as "2026-11-05", is the date that chat templates may write; None takes
        the current date.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise DataError(f"{path}: no such tokenizer file or directory")
        files = SideFiles(path, strict=True)
        facts = tokenizer_facts(files, files.json("config.json"), ANY_ROWS)
        if facts["file"] is None:
            raise DataError(f"{path}: {'; '.join(facts['problems'])}")
        file = files.directory / facts["file"]
        backend = TokenizerJson(file) if file.suffix == ".json" else SentencePiece(file)
        written = template or files.template()
        named = [each for each in facts["special"].values() if each and each["id"] is not None]
        specials = [
            *backend.specials,
            *added_specials(files.json("tokenizer_config.json"), files.json("added_tokens.json")),
            *(Special(each["id"], each["token"]) for each in named),
            *tags(backend, written or ""),
        ]
        self = cls(backend, specials, facts)
        if written:
            names = _names(files, facts["special"])
            self.template = ChatTemplate(written, self.markup, names, self.stops, today)
        if self.template and template:
            self.stops = tuple(sorted({*self.stops, *self.template.ends}))
        return self

    def __len__(self) -> int:
        return max([self._backend.size, *(number + 1 for number in self._texts)])

    def encode(self, text: str, *, continues: bool = False, special: bool = False) -> list[int]:
        """Returns the ids of a text, without BOS or EOS.

        With `special`, special tokens written in the text are encoded as such unless quoted;
        without it, all text is plain. `continues` is described at the top of the module.
        """
        if not special:
            return self._plain(text, continues)
        ids = (
            [piece.id]
            if piece.id is not None
            else self._plain(unmarked(piece.text), continues if piece.start == 0 else self._joins)
            for piece in self.markup.pieces(text)
        )
        return list(itertools.chain.from_iterable(ids))

    def decode(self, ids: Sequence[int], *, continues: bool = False, special: bool = False) -> str:
        """Returns the text of ids, without special tokens unless `special` is set.

        Tokenizers that put a space before every text remove it here, unless `continues` is set.
        """
        parts: list[str] = []
        known = [number for number in map(int, ids) if 0 <= number < len(self)]
        for text, run in itertools.groupby(known, self._texts.get):
            if text is not None:
                parts += [text for _ in run] if special else []
            else:
                parts.append(self._backend.decode(list(run), begins=not (parts or continues)))
        return "".join(parts)

    def quote(self, value: Any, name: str = "the text") -> Any:
        """Marks the special tokens in text, or in lists and mappings of it, as plain text.

        `name` says in errors which text it is.
        """
        return self.markup.quote(value, name)

    def piece(self, number: int) -> str:
        """Returns a token as the file spells it, such as `▁blue`."""
        return self._texts.get(number) or self._backend.piece(number)

    def id(self, token: str) -> int:
        """Returns the id of a token, such as `<end_of_turn>`."""
        special = self.specials.get(token)
        found = special.id if special else self._backend.id(token)
        if found is None:
            raise DataError(f"{token!r} is not a token of this vocabulary")
        return found

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, turns: str = "all", **options: Any
    ) -> list[Span]:
        """Encodes a conversation with the chat template, with the assistant's turns scored.

        A turn is scored from the end of its header to the token that ends it. `turns` is "all" or
        "last"; a message with `"weight": 0` is not scored. `options` are passed to the template.
        """
        if self.template is None:
            raise DataError(MISSING)
        text, regions = self.template.conversation(messages, turns, options)
        runs = itertools.groupby(self._tokens(text, regions), lambda token: token[1])
        return [Span([number for number, _ in run], scored) for scored, run in runs]

    def ask(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Encodes a conversation with the chat template, up to the assistant's turn."""
        if self.template is None:
            raise DataError(MISSING)
        text = self.template.request(messages, options)
        return [number for number, _ in self._tokens(text, [])]

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template in use, or None if there is none."""
        return self.template.text if self.template else None

    @property
    def _joins(self) -> bool:
        """Whether text after a special token is encoded as a continuation."""
        return not self._backend.spaced_after_special

    def _tokens(self, text: str, regions: Sequence[Region]) -> Iterator[tuple[int, bool]]:
        """Yields the ids of a template's text, each with whether it is in a scored region."""
        borders = sorted({border for region in regions for border in region})
        for piece in self.markup.pieces(text):
            for part in _cut(piece, borders):
                scored = any(begin <= part.start < end for begin, end in regions)
                within = self._joins if part.start == piece.start and part.start else part.start > 0
                ids = [part.id] if part.id is not None else self._plain(unmarked(part.text), within)
                yield from ((number, scored) for number in ids)

    def _plain(self, text: str, continues: bool) -> list[int]:
        """Returns the ids of plain text, none of them special."""
        if problem := half_character(text):
            raise UserError(f"the text {problem}")
        ids = self._backend.encode(text, continues)
        if self._forbidden.isdisjoint(ids):
            return ids
        # This file matches special tokens in any text, so the text is split inside each of them.
        parts = enumerate(self.markup.broken(text))
        runs = [self._backend.encode(part, continues or n > 0) for n, part in parts]
        ids = list(itertools.chain.from_iterable(runs))
        if not self._forbidden.isdisjoint(ids):
            found = [self.piece(number) for number in self._forbidden.intersection(ids)]
            raise UserError(
                f"the text contains {found}, which this tokenizer can encode only as special tokens"
            )
        return ids


def _names(files: SideFiles, special: Mapping[str, Any]) -> dict[str, str]:
    """Returns the special tokens by their names in templates: `bos_token` and the like."""
    found = {**files.json("special_tokens_map.json"), **files.json("tokenizer_config.json")}
    texts = {
        name: token.get("content") if isinstance(token, Mapping) else token
        for name, token in found.items()
        if name.endswith("_token")
    }
    texts |= {f"{role}_token": (special[role] or {}).get("token") for role in ROLES}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _cut(piece: Piece, borders: Sequence[int]) -> Iterator[Piece]:
    """Splits a run of plain text at the borders within it."""
    if piece.id is not None:
        yield piece
        return
    inner = [border for border in borders if piece.start < border < piece.end]
    for begin, end in itertools.pairwise([piece.start, *inner, piece.end]):
        yield Piece(piece.text[begin - piece.start : end - piece.start], begin)


def beside(file: Path) -> Path:
    """Returns the only tokenizer in a file's folder; raises DataError if there is not just one."""
    found = sorted(file.parent.glob("*.model"))
    if len(found) != 1:
        among = ", ".join(each.name for each in found) or "none"
        raise DataError(
            f"{file}: expected one tokenizer, such as paligemma_tokenizer.model, beside it, but "
            f"found {among}; name it as data.tokenizer"
        )
    return found[0]
