"""Words as sacreBLEU's tokeniser and NLTK's of the Penn treebank have them."""

import random

import pytest
from nltk.tokenize import TreebankWordTokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from jaxtune.metrics import words
from tests.metrics import made

# What the published captioning figures leave out, as the treebank writes it.
PUNCTUATION = {"''", "'", "``", "`", *"(){}[].?!,:-;", "--", "..."}
CAPTIONS = [
    "A man's dog can't sit on the red t-shirt.",
    "Two boys' bikes, parked at 10:30 (near a shop)!",
    "It costs $5 -- or 50% of 1,000.",
    "They're gonna eat; we'll cannot.",
    'An "open" sign and/or a stop-sign',
    "A cat... sleeping at 5 o'clock",
    "café au lait, s'il vous plaît",
    "a 3.5 inch #2 pencil @ home & school",
    "",
]


def test_mteval_is_sacrebleus():
    draw, live = random.Random(0), Tokenizer13a()
    texts = [each for row in made.awkward() for each in (row.answer, *row.references)]
    texts += ["".join(draw.choices("ab1 .,-'\"&(;lt\n", k=12)) for _ in range(2000)]
    for text in texts:
        assert words.mteval(text) == live(text).split(), text


@pytest.mark.parametrize("text", CAPTIONS)
def test_captions_are_the_treebanks_without_punctuation(text):
    expected = TreebankWordTokenizer().tokenize(text.lower())
    assert words.caption(text) == [word for word in expected if word not in PUNCTUATION]


def test_a_typographic_apostrophe_is_one():
    assert words.caption("the dog’s bowl isn’t full") == words.caption("the dog's bowl isn't full")
