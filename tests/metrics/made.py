"""Answers and references, random and awkward, for comparing with a live reference."""

import random

from jaxtune.metrics import Prediction

AWKWARD = [
    ("", ("a man rides a horse",)),
    ("", ("",)),
    ("word", ("word",)),
    ("one two three", ("one two three",)),
    ("the cat sat on the mat .", ("the cat sat on the mat.", "a cat sat on a mat")),
    ("the the the the the", ("the cat the", "the the")),
    ("naïve café — “quoted” 東京 Straße", ("naive cafe 東京 strasse", "naïve café")),
    ("1,299.00 dollars, 3-4 (or so)... .5 .....5", ("1,299.00 dollars; 3 - 4 [or so] .5",)),
    ("it's don't they've &quot;no&quot; &amp;lt; <skipped>", ("it 's do n't 'they' \"no\" &lt;",)),
    ("a line-\nbroken word\nand\ttabs  ", (" a linebroken word and tabs", "a line")),
    ("a b", ("a c", "b d", "a b c d e f g h")),
    ("İstanbul ΑΣ ﬁn 𝟙 ½", ("istanbul ας fin 1 1/2",)),
    ("it ends in a hyphen-\n", ("it ends in a hyphen-",)),
    ("...!!!", ("?",)),
]
WORDS = ["the", "a", "cat", "dog", "sat,", "on", "mat.", "red", "Red", "3.5", "1,000", "it's",
         "e-mail", "(so)", "“x”", "東京", "...", "$5", ";", "don't"]  # fmt: skip


def answered(answer: str, references: tuple[str, ...] = (), **more) -> Prediction:
    return Prediction(answer, references, more.pop("record", {}), **more)


def text(draw: random.Random, least: int = 0, most: int = 14) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))


def rows(seed: int, count: int = 60, references: int = 3) -> list[Prediction]:
    """Some answers are a reference with a few words changed, some are at random."""
    draw = random.Random(seed)
    return [_row(draw, tuple(text(draw) for _ in range(references))) for _ in range(count)]


def _row(draw: random.Random, references: tuple[str, ...]) -> Prediction:
    near = [word if draw.random() < 0.8 else draw.choice(WORDS) for word in references[0].split()]
    return answered(" ".join(near) if draw.random() < 0.7 else text(draw), references)


def awkward() -> list[Prediction]:
    return [answered(answer, references) for answer, references in AWKWARD]
