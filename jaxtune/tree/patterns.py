"""Regular expressions whose matching takes bounded time, whatever the pattern.

Python's `re` backtracks: `(.*)*x` takes longer than anyone waits on a name of 40 characters, and
patterns come with adapters that were downloaded. Here a pattern is parsed by `re` and matched
without backtracking: each part of it maps the set of positions that were reached in the text to
the set of positions that can be reached from there.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from re import _constants as codes
from re import _parser as parser
from typing import Any

from jaxtune.display.errors import UserError

LONGEST = 10_000  # characters of a pattern
LONGEST_TEXT = 2_000  # characters of a text
# Parts of patterns that may be matched, over all the texts that one `Patterns` is asked about:
# less than a second. The modules of an 80-layer model take 20,000 for one usual pattern.
WORK = 600_000
WIDE = 500  # characters of a text whose sets of positions still cost no more than a small integer
CATEGORIES: dict[Any, Callable[[str], bool]] = {
    codes.CATEGORY_DIGIT: str.isdecimal,
    codes.CATEGORY_SPACE: str.isspace,
    codes.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
}
CATEGORIES |= {
    codes.CATEGORY_NOT_DIGIT: lambda char: not char.isdecimal(),
    codes.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    codes.CATEGORY_NOT_WORD: lambda char: not (char.isalnum() or char == "_"),
}
UNSUPPORTED = {
    codes.GROUPREF: "a reference to a group",
    codes.GROUPREF_EXISTS: "a condition on a group",
    codes.ATOMIC_GROUP: "an atomic group",
    codes.POSSESSIVE_REPEAT: "a possessive quantifier",
}

Positions = int  # bit i is set if position i is in the set
Step = Callable[["Text", Positions], Positions]


class PatternError(UserError):
    """A pattern is not a regular expression, or takes too much work to match."""


class Unsupported(Exception):
    """A part of a pattern that `Patterns` does not match."""


class Overspent(Exception):
    """The matches of a `Patterns` have taken too much work."""


class Patterns:
    """Matches patterns against texts, and bounds the work of all these matches together."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}
        self._texts: dict[str, Text] = {}
        self._found: dict[tuple[str, str], bool] = {}
        self._left = WORK

    def fullmatch(self, pattern: str, text: str) -> bool:
        """Returns whether a pattern matches a whole text, as `re.fullmatch` does."""
        if pattern not in self._steps:
            self._steps[pattern] = _parsed(pattern)
        if (pattern, text) not in self._found:
            self._found[pattern, text] = self._match(pattern, text)
        return self._found[pattern, text]

    def spend(self, work: int) -> None:
        """Counts work; raises if the matches have taken too much of it."""
        self._left -= work
        if self._left < 0:
            raise Overspent

    def _match(self, pattern: str, text: str) -> bool:
        try:
            if text not in self._texts:
                self._texts[text] = Text(text, self)
            reached = self._steps[pattern](self._texts[text], 1)
            return bool(reached >> len(text) & 1)
        except Overspent:
            raise PatternError(_explained(pattern, "takes too long to match")) from None
        except RecursionError:
            raise PatternError(_explained(pattern, "is nested too deeply")) from None


def check(pattern: str) -> None:
    """Raises PatternError if a pattern is not a regular expression that `Patterns` matches."""
    _parsed(pattern)


class Text:
    """A text, as sets of the positions at which its characters stand."""

    def __init__(self, text: str, owner: Patterns):
        self.length = len(text)
        if self.length > LONGEST_TEXT:
            raise PatternError(f"{_cut(text)} has {self.length:,} characters, too many for a name")
        owner.spend(1 + self.length // 10)
        self.everywhere = (2 << self.length) - 1  # all positions, that at the end included
        self.cost = 1 + self.length // WIDE
        self._owner = owner
        self.at: dict[str, Positions] = {}
        for place, char in enumerate(text):
            self.at[char] = self.at.get(char, 0) | 1 << place

    def spend(self) -> None:
        """Counts the work of matching one part of a pattern against this text."""
        self._owner.spend(self.cost)

    def those(self, fits: Callable[[str], bool]) -> Positions:
        """Returns the positions of the characters that fit."""
        return sum(places for char, places in self.at.items() if fits(char))

    def boundaries(self) -> Positions:
        """Returns the positions between a character of a word and another one, or an end."""
        words = self.those(CATEGORIES[codes.CATEGORY_WORD])
        return words ^ (words << 1)


def _explained(pattern: str, problem: str) -> str:
    return f"{_cut(pattern)} {problem}: write it without nested repetitions, or list the names"


def _cut(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:60] + "…")


@lru_cache(1024)
def _parsed(pattern: str) -> Step:
    if len(pattern) > LONGEST:
        raise PatternError(
            f"{_cut(pattern)} has {len(pattern):,} characters: expected a pattern of at most"
            f" {LONGEST:,}"
        )
    try:
        re.compile(pattern)
        parsed = parser.parse(pattern)
        if parsed.state.flags & ~re.UNICODE:
            raise Unsupported("flags, such as (?i)")
        return _sequence(parsed)
    except Unsupported as found:
        raise PatternError(
            f"{_cut(pattern)} has {found}, which jaxtune does not match: write it without"
        ) from None
    except (re.error, OverflowError) as problem:
        raise PatternError(
            f"{_cut(pattern)} is not a valid regular expression: {problem}"
        ) from None
    except RecursionError:
        raise PatternError(
            f"{_cut(pattern)} is nested too deeply: write it with fewer groups"
        ) from None


def _sequence(parts: Iterable[tuple[Any, Any]]) -> Step:
    steps = [_step(*part) for part in parts]

    def follow(text: Text, reached: Positions) -> Positions:
        text.spend()
        for step in steps:
            if not reached:
                break
            text.spend()
            reached = step(text, reached)
        return reached

    return follow


def _step(code: Any, given: Any) -> Step:
    if (fits := _single(code, given)) is not None:
        return partial(_advanced, fits)
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
        return _repeated(*given)
    if code is codes.SUBPATTERN:
        _, added, removed, parts = given
        if added or removed:
            raise Unsupported("flags, such as (?i:…)")
        return _sequence(parts)
    if code is codes.BRANCH:
        branches = [_sequence(each) for each in given[1]]
        return lambda text, reached: _union(branch(text, reached) for branch in branches)
    if code is codes.AT:
        return lambda text, reached: reached & _anchors(given, text)
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return _asserted(*given, wanted=code is codes.ASSERT)
    raise Unsupported(UNSUPPORTED.get(code, str(code)))


def _union(sets: Iterable[Positions]) -> Positions:
    union = 0
    for each in sets:
        union |= each
    return union


def _single(code: Any, given: Any) -> Callable[[Text], Positions] | None:
    """Returns the positions of the characters that a part matches, if it matches a single one."""
    if code is codes.LITERAL:
        return lambda text: text.at.get(chr(given), 0)
    if code is codes.NOT_LITERAL:
        return lambda text: text.those(lambda char: char != chr(given))
    if code is codes.ANY:
        return lambda text: text.everywhere >> 1 & ~text.at.get("\n", 0)
    if code is codes.IN:
        return lambda text: text.those(lambda char: _in_class(char, given))
    return None


def _in_class(char: str, items: list[tuple[Any, Any]]) -> bool:
    negated = items[0][0] is codes.NEGATE
    return negated != any(_is_item(char, *item) for item in items[negated:])


def _is_item(char: str, code: Any, given: Any) -> bool:
    if code is codes.LITERAL:
        return ord(char) == given
    if code is codes.RANGE:
        return given[0] <= ord(char) <= given[1]
    return CATEGORIES[given](char)


def _advanced(fits: Callable[[Text], Positions], text: Text, reached: Positions) -> Positions:
    return (reached & fits(text)) << 1


def _repeated(least: int, most: Any, parts: Any) -> Step:
    once = _sequence(parts)
    fits = _single(*parts[0]) if len(parts) == 1 else None
    endless = most is codes.MAXREPEAT

    def repeat(text: Text, reached: Positions) -> Positions:
        for _ in range(least):  # ends early: each round moves some position on, or changes none
            before, reached = reached, once(text, reached)
            if reached in (0, before):
                break
        if fits and endless:
            return _run(fits(text), reached)
        union = new = reached
        count = least
        while new and (endless or count < most):
            new = once(text, new) & ~union
            union |= new
            count += 1
        return union

    return repeat


def _run(fits: Positions, reached: Positions) -> Positions:
    """Adds the positions that are reached over any number of fitting characters.

    The carry of the sum runs through each run of ones from the first position that was reached.
    """
    return reached | ((fits & reached) + fits) ^ fits


def _anchors(kind: Any, text: Text) -> Positions:
    end = 1 << text.length
    match kind:
        case codes.AT_BEGINNING | codes.AT_BEGINNING_STRING:
            return 1
        case codes.AT_END_STRING:
            return end
        case codes.AT_END:
            return end | end >> 1 & text.at.get("\n", 0)
        case codes.AT_BOUNDARY:
            return text.boundaries()
    return text.everywhere & ~text.boundaries() if text.length else 0


def _asserted(direction: int, parts: Any, wanted: bool) -> Step:
    """Returns the step of (?=…), (?!…), (?<=…) or (?<!…), from one position at a time."""
    inside = _sequence(parts)
    width = parts.getwidth()[0] if direction < 0 else 0

    def holds(text: Text, place: int) -> bool:
        if place < width:
            return False
        found = inside(text, 1 << place - width)
        return bool(found >> place & 1 if direction < 0 else found)

    def keep(text: Text, reached: Positions) -> Positions:
        kept = 0
        while reached:
            one = reached & -reached
            reached ^= one
            if holds(text, one.bit_length() - 1) == wanted:
                kept |= one
        return kept

    return keep
