"""Writes conversations with a checkpoint's chat template, and finds the parts to score."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtune.data.errors import known
from jaxtune.data.markup import Markup
from jaxtune.data.messages import standard
from jaxtune.data.meter import TemplateLimit
from jaxtune.data.templates import BEGIN, END, GENERATION, compiled
from jaxtune.display.errors import UserError

ASSISTANT = ("assistant", "model")  # the second is Gemma's name for the role
TURNS = ("all", "last")
ASK = {"role": "user", "content": "ask"}
PROBE = "probe"

Message = Mapping[str, Any]
Region = tuple[int, int]  # (begin, end) in characters; the end is exclusive


class ChatTemplate:
    """A chat template with the tokens that end a turn.

    Args:
      text: Source of the template, in jinja.
      markup: Finds the special tokens of the tokenizer.
      names: Special tokens by the names that templates use, such as `bos_token`.
      stops: Ids that end a text or a turn.
      today: Date that the template sees, such as "2026-11-05"; None for the current date.
    """

    def __init__(
        self,
        text: str,
        markup: Markup,
        names: Mapping[str, str],
        stops: Sequence[int],
        today: str | None = None,
    ):
        self.text = text
        self._markup, self._names, self._stops = markup, names, stops
        self._render = compiled(text, today)
        self._marks = bool(GENERATION.search(text))

    def conversation(
        self, messages: Sequence[Message], turns: str, options: Mapping[str, Any]
    ) -> tuple[str, list[Region]]:
        """Returns the text of a conversation, with its messages quoted, and the scored regions."""
        known("turns", turns, TURNS)
        messages = self._quoted(messages)
        asked = [n for n, message in enumerate(messages) if message["role"] in ASSISTANT]
        chosen = [n for n in asked if turns == "all" or n == asked[-1]]
        chosen = [n for n in chosen if messages[n].get("weight", 1) != 0]
        text = self.write(messages, options)
        if not self._marks:
            return text, self._answers(text, messages, chosen, options)
        text, blocks = _blocks(text)
        if asked != chosen:
            blocks = _of_turns(blocks, asked, chosen)
        return text, self._ended(text, blocks)

    def request(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        """Returns the text of a conversation up to where the assistant's turn begins."""
        messages = self._quoted(messages)
        return _blocks(self.write(messages, options, ask=True))[0]

    def write(
        self, messages: Sequence[Message], options: Mapping[str, Any], ask: bool = False
    ) -> str:
        """Renders messages; `ask` adds the header of the assistant's next turn."""
        defaults = {"tools": None, "documents": None, **self._names}
        try:
            return self._render(
                **{**defaults, **options}, messages=messages, add_generation_prompt=ask
            )
        except TemplateLimit:
            raise
        except Exception as error:  # templates can raise anything
            raise UserError(f"the chat template rejects the conversation: {error}") from None

    def _quoted(self, messages: Any) -> list[Message]:
        """Returns messages after checking them, without null values and with their texts quoted."""
        plain = [_plain(message) for message in _checked(messages)]
        return [self._markup.quote(each, f"message {n}") for n, each in enumerate(plain, 1)]

    def _answers(
        self,
        text: str,
        messages: Sequence[Message],
        chosen: Sequence[int],
        options: Mapping[str, Any],
    ) -> list[Region]:
        """Returns each chosen turn, from the end of its header to the first token that ends it."""
        ends = [piece for piece in self._markup.pieces(text) if piece.id in self.ends]
        regions: list[Region] = []
        for number in chosen:
            turn = f"message {number + 1}"
            before = self.write(messages[:number], options, ask=True)
            if regions and len(before) < regions[-1][1]:
                raise UserError(
                    f"the chat template writes no end token between {turn} and the assistant turn "
                    "before it"
                )
            if not text.startswith(before):
                raise UserError(
                    f"the chat template renders the text before {turn} differently once that turn "
                    'is included; score only the last turn (turns="last"), or use a template that '
                    "marks the assistant's text with {% generation %}"
                )
            end = next((piece.end for piece in ends if piece.start >= len(before)), None)
            if end is None:
                raise UserError(f"the chat template writes no end token after {turn}")
            regions.append((len(before), end))
        return regions

    def _ended(self, text: str, blocks: Sequence[Region]) -> list[Region]:
        """Extends the marked blocks by the end token of the turn, if it follows them directly."""
        ends = [piece for piece in self._markup.pieces(text) if piece.id in self.ends]
        after = {piece.start: piece.end for piece in ends}
        regions = [(begin, after.get(end, end)) for begin, end in blocks]
        for begin, end in regions:
            if not any(begin <= piece.start < end for piece in ends):
                raise UserError(
                    f"the chat template writes no end token after {text[begin:end][:40]!r}"
                )
        return regions

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """Ids of the stops and of the special token that the template writes after an answer."""
        try:
            text = self.write([ASK, {"role": "assistant", "content": PROBE}], {})
        except ValueError:  # the template refuses this conversation: only the stops are known
            return frozenset(self._stops)
        after = _blocks(text)[0].rpartition(PROBE)[2] if PROBE in text else ""
        special = [piece.id for piece in self._markup.pieces(after) if piece.id is not None]
        return frozenset([*self._stops, *special[:1]])


def _checked(messages: Any) -> Sequence[Message]:
    """Returns messages after checking that they are a list of mappings with roles."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError("expected a list of messages, each with a role and a content")
    messages = standard(messages)
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {number} has no role: {str(message)[:80]}")
        if message.get("content") is None and not message.get("tool_calls"):
            keys = ", ".join(map(str, message))
            raise UserError(f"message {number} has no content; its keys are {keys}")
    return messages


def _plain(message: Message) -> dict[str, Any]:
    """Returns a message without null values, which tables put where a message lacks a key."""
    return {key: value for key, value in message.items() if value is not None}


def _blocks(text: str) -> tuple[str, list[Region]]:
    """Removes the marks of {% generation %} from a text; returns it with the marked blocks."""
    parts, blocks, length = [], [], 0
    for number, part in enumerate(text.split(BEGIN)):
        block, _, after = part.partition(END) if number else ("", "", part)
        if number:
            blocks.append((length, length + len(block)))
        parts += [block, after]
        length += len(block) + len(after)
    return "".join(parts), blocks


def _of_turns(blocks: list[Region], asked: list[int], chosen: list[int]) -> list[Region]:
    """Returns the blocks of the chosen turns; raises ValueError unless there is one per turn."""
    if len(blocks) != len(asked):
        raise UserError(
            f"the chat template marks {len(blocks)} blocks for {len(asked)} assistant turns; "
            "scoring only some of the turns needs one block per turn"
        )
    return [block for number, block in zip(asked, blocks, strict=True) if number in chosen]
