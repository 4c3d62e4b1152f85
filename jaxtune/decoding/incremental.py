"""Decodes the tokens of an answer to text as they come, without decoding all of them again."""

import re
from collections.abc import Sequence

from jaxtune.data.tokenizer import Tokenizer

TORN = "\ufffd"  # what the bytes of an incomplete character decode to
BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte-fallback token of a character vocabulary
CHARACTER = 4  # bytes of the longest character, and so at most as many tokens
WAITING = (
    4 * CHARACTER
)  # tokens that wait for the end of a character before a place to cut is sought


class TextStream:
    """Text of tokens that come one by one, which equals that of decoding them all at once.

    Text is settled when no later token can change it. Only the tokens after it are decoded again,
    together with the few before them on which a decoder may look back.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # the last tokens whose text is settled
        self._waiting: list[int] = []  # tokens whose text may still change

    def push(self, token: int) -> str:
        """Adds a token, and returns the text that is settled by it, which may be empty."""
        self._waiting.append(token)
        # One byte that fits no character turns all adjacent bytes into replacement characters, too.
        if BYTE.fullmatch(self._tokenizer.piece(token)):
            return ""
        text = self.waiting
        if not text.endswith(TORN):
            return self._settle(len(self._waiting))
        if len(self._waiting) < WAITING:
            return ""
        # Nothing but replacement characters come: cut where that leaves the text as it is.
        last = len(self._waiting) - CHARACTER
        for cut in range(last, last - CHARACTER, -1):
            head, tail = self._waiting[:cut], self._waiting[cut:]
            if self._text(self._before, head) + self._text(head, tail) == text:
                return self._settle(cut)
        return ""

    @property
    def waiting(self) -> str:
        """Text of the tokens after the settled text, as if no other followed."""
        return self._text(self._before, self._waiting)

    def _settle(self, count: int) -> str:
        """Settles the text of the first waiting tokens, and returns it."""
        settled = self._text(self._before, self._waiting[:count])
        self._before, self._waiting = self._waiting[:count], self._waiting[count:]
        return settled

    def _text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """Returns the text of tokens that follow others."""
        known = self._tokenizer.decode(before, continues=True)
        return self._tokenizer.decode([*before, *tokens], continues=True)[len(known) :]
