"""Boxes in answers, against definitions written out."""

import itertools
import math
import random

import pytest

from jaxtune.metrics import Prediction, summarise
from jaxtune.metrics.boxes import F1, IOU, LAST, MALFORMED, Box, f1, overlap, pairs, parsed, written

CAT = "<loc0123><loc0456><loc0789><loc0999> cat"
DOG = "<loc0000><loc0000><loc1023><loc0512> small dog"


def test_boxes_are_read_as_they_are_written():
    boxes, torn = parsed(f"{CAT} ; {DOG}")
    assert torn == 0 and [box.label for box in boxes] == ["cat", "small dog"]
    assert boxes[0].sides == (123 / LAST, 456 / LAST, 789 / LAST, 999 / LAST)
    assert boxes[1].sides == (0, 0, 1, 512 / LAST)
    assert written(boxes) == f"{CAT} ; {DOG}"
    every = [Box("a", n / LAST, n / LAST, (n + 1) / LAST, (n + 1) / LAST) for n in range(LAST)]
    assert parsed(written(every)) == (every, 0)


def test_writing_rounds_as_big_vision_does():
    # tf.round(share * 1023), cut to 0 … 1023; half a step goes to the even number.
    assert written([Box("a", -0.1, 0.5 / 1023, 1.5 / 1023, 1.2)]) == (
        "<loc0000><loc0000><loc0002><loc1023> a"
    )


@pytest.mark.parametrize(
    "part",
    [
        "cat",
        "<loc0001><loc0002><loc0003> cat",
        "<loc0001><loc0002><loc0003><loc0004>",
        "<loc0001><loc0002><loc0003><loc1024> cat",
        "<loc0005><loc0002><loc0003><loc0004> cat",
        "<loc0001><loc0002><loc0003><loc0002> cat",
        "<loc001><loc0002><loc0003><loc0004> cat",
        "<loc0001><loc0002><loc0003><loc0004> cat <loc0001>",
        "a cat <loc0001><loc0002><loc0003><loc0004>",
    ],
)
def test_what_is_no_box_is_counted_and_the_rest_stands(part):
    boxes, torn = parsed(f"{CAT};{part} ;; {DOG}")
    assert torn == 1 and written(boxes) == f"{CAT} ; {DOG}"


def test_nothing_and_outlines_of_parts():
    assert parsed("") == parsed(" ;\n") == ([], 0)
    (box,), torn = parsed("<loc0001><loc0002><loc0003><loc0004><seg001><seg127>  a  cat\n")
    assert torn == 0 and box.label == "a cat"


def test_overlaps_are_those_of_counted_cells():
    chance = random.Random(0)
    for _ in range(200):
        first, second = (
            (*sorted(chance.sample(range(9), 2)), *sorted(chance.sample(range(9), 2)))
            for _ in range(2)
        )
        cells = [
            set(itertools.product(range(top, bottom), range(left, right)))
            for top, bottom, left, right in (first, second)
        ]
        boxes = [Box("a", top, left, bottom, right) for top, bottom, left, right in (first, second)]
        expected = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
        assert overlap(*boxes) == overlap(*boxes[::-1]) == pytest.approx(expected)
    assert overlap(Box("a", 0, 0, 0, 0), Box("a", 0, 0, 0, 0)) == 0


def made(chance, count, spread=4):
    """Boxes that overlap often, of few labels."""
    corners = [(chance.randrange(spread), chance.randrange(spread)) for _ in range(count)]
    return [
        Box(
            chance.choice("abB"), top, left, top + chance.randint(2, 4), left + chance.randint(2, 4)
        )
        for top, left in corners
    ]


def most(answered, expected, near):
    """The same by trying every way of pairing."""
    few, many = sorted((answered, expected), key=len)
    return max(
        sum(
            one.label.lower() == other.label.lower() and overlap(one, other) >= near
            for one, other in zip(few, chosen, strict=True)
        )
        for chosen in itertools.permutations(many, len(few))
    )


@pytest.mark.parametrize("near", [0.2, 0.5])
def test_as_many_boxes_are_found_as_any_pairing_finds(near):
    chance, moved = random.Random(1), 0
    for _ in range(300):
        answered, expected = (made(chance, chance.randint(0, 5)) for _ in range(2))
        found = pairs(answered, expected, near)
        assert found == pairs(expected, answered, near) == most(answered, expected, near)
        taken = set()
        for box in answered:  # each the first that is free
            at = next(
                (
                    n
                    for n, each in enumerate(expected)
                    if n not in taken
                    and each.label.lower() == box.label.lower()
                    and overlap(box, each) >= near
                ),
                None,
            )
            taken |= set() if at is None else {at}
        moved += len(taken) < found
    assert moved > 0  # so that it matters


def figures(*pairs_of_texts):
    rows = [Prediction(answer, (reference,), {}) for answer, reference in pairs_of_texts]
    found = summarise((F1, IOU, MALFORMED), rows, samples=1)
    return {name: figure.value for name, figure in found.items()}


def test_figures_over_rows():
    both = f"{CAT} ; {DOG}"
    assert figures((both, both)) == {"f1@0.5": 1, "iou": 1, "malformed": 0}
    assert figures((both.upper().replace("LOC", "loc"), both))["f1@0.5"] == 1
    other = CAT.replace("cat", "dog")
    assert figures((other, CAT)) == {"f1@0.5": 0, "iou": 0, "malformed": 0}
    # One of two found, and one answered twice: 2 x 1 / (2 + 2), the second row without an answer.
    doubled = figures((f"{CAT};{CAT}", both), ("what", CAT))
    assert doubled == pytest.approx(
        {"f1@0.5": 2 / (2 + 2 + 0 + 1), "iou": 1 / 3, "malformed": 1 / 3}
    )
    assert figures(("", CAT)) == {"f1@0.5": 0, "iou": 0, "malformed": None}
    half = CAT.replace("<loc0789>", "<loc0456>")  # half as high
    assert figures((half, CAT)) == pytest.approx({"f1@0.5": 1, "iou": 0.5, "malformed": 0})
    assert not math.isclose(
        f1(0.51).value(f1(0.51).statistics([Prediction(half, (CAT,), {})])[0]), 1
    )
