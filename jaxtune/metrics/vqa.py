"""VQA accuracy (Antol et al. 2015) as the challenge's evaluation code computes it, 0 to 1."""

import re

from jaxtune.metrics.metric import Prediction, mean, references

AGREEING = 3  # people who must have given an answer for it to be fully right
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS = {name: str(number) for number, name in enumerate(NAMES)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
GROUPED = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
# A word that lacks one of these apostrophes gets it back: `couldnt've` and `couldn'tve` alike.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _contractions() -> dict[str, str]:
    found = {
        word[:at] + word[at + 1 :]: word
        for word in CONTRACTED.split()
        for at, character in enumerate(word)
        if character == "'"
    }
    return found | {"somebody'd": "somebodyd"}  # sic, as in the challenge's code


CONTRACTIONS = _contractions()


def normalised(text: str) -> str:
    """Returns an answer as the challenge's code normalises it.

    Punctuation and articles are dropped, numbers up to ten become digits, and contractions get
    their apostrophes.
    """
    grouped = GROUPED.search(text)
    found = text
    for mark in PUNCTUATION:
        # As in the challenge's code: a mark is dropped if the text has it next to a space, or has a
        # comma between digits anywhere. Otherwise it becomes a space.
        apart = grouped or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if apart else " ")
    words = (NUMBERS.get(word, word) for word in PERIOD.sub("", found).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _score(row: Prediction) -> float:
    """Returns the accuracy against all references but one, averaged over the one left out.

    The accuracy is the number of remaining references that equal the answer, divided by three (or
    by their number if fewer remain), and at most 1. A single reference is not left out.
    """
    answer, expected = _spaced(row.answer), [_spaced(each) for each in references(row)]
    if len(set(expected)) > 1:  # As in the challenge, normalise only if references differ.
        answer, expected = normalised(answer), [normalised(each) for each in expected]
    same = [each == answer for each in expected]
    others = [sum(same) - each for each in same] if len(same) > 1 else same
    needed = min(AGREEING, max(len(same) - 1, 1))
    return sum(min(agreeing / needed, 1) for agreeing in others) / len(others)


def _spaced(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


VQA = mean("vqa", _score)
