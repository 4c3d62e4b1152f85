"""VQA accuracy by the challenge's rules, its oddities included."""

import pytest

from jaxtune.metrics import per_row, vqa
from tests.metrics import made


def accuracy(answer, references):
    return per_row([vqa.VQA], [made.answered(answer, tuple(references))])["vqa"][0]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The Cat, a dog", "cat dog"),
        ("none", "0"),
        ("Two and ten eleven", "2 and 10 eleven"),
        ("dont", "don't"),
        ("couldnt've couldn'tve couldntve", "couldn't've couldn't've couldntve"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("let's", "let's"),
        ("3.5 p.m.", "3.5 pm"),
        ("t-shirt", "t shirt"),  # a mark within words is a space
        ("t- shirt", "t shirt"),
        ("black/white", "black white"),
        ("black/white or /", "blackwhite or"),  # beside a space anywhere, it is nothing everywhere
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),  # and so are all, where a number holds a comma
        ("yes!?", "yes"),
        ("a", ""),
    ],
)
def test_answers_are_normalised_as_the_challenge_does(text, expected):
    assert vqa.normalised(text) == expected


@pytest.mark.parametrize("agreeing, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_three_who_agree_make_it_right_averaged_over_the_one_left_out(agreeing, expected):
    # Of two that agree, for example, one is left for two of the ten, and two for eight of them.
    references = ["red"] * agreeing + [f"colour {each}" for each in range(10 - agreeing)]
    assert accuracy("Red", references) == pytest.approx(expected)


def test_what_all_agree_on_is_taken_to_the_letter():
    assert accuracy("The Red", ["red"] * 10) == 0
    assert accuracy("The Red", ["red"] * 9 + ["the red"]) == 1
    assert accuracy(" red\n", ["red"] * 10) == 1


@pytest.mark.parametrize(
    "references, expected",
    [(["red"], 1), (["blue"], 0), (["red", "blue"], 0.5), (["red", "red"], 1),
     (["red", "red", "blue"], 2 / 3), (["red"] * 3, 1), (["red"] * 3 + ["blue"], 0.75)],
)  # fmt: skip
def test_of_few_references_it_takes_all_that_are_left(references, expected):
    assert accuracy("red", references) == pytest.approx(expected)
