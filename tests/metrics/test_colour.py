"""CIEDE2000 by its published test data, and palettes by trying every order."""

from itertools import permutations

import numpy as np
import pytest

from jaxtune.metrics import colour, per_row, summarise
from tests.metrics import made

# Sharma, Wu and Dalal (2005), table 1: two colours in CIELAB and their difference.
PUBLISHED = np.loadtxt(
    """
    50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
    50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
    50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
    50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
    50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
    50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
    50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
    50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
    50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
    50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
    50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
    50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
    50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
    50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
    50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
    50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
    50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
    50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
    50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
    50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
    50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
    50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
    50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
    50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
    60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
    63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
    61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
    35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
    22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
    36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
    90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
    90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
    6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
    2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
    """.splitlines()[1:-1]
)
FOUR = ["#1f2a44", "#e8dcc5", "#a0b1c2", "#ffffff"]


def test_ciede2000_is_the_published():
    assert len(PUBLISHED) == 34
    first, second, expected = PUBLISHED[:, :3], PUBLISHED[:, 3:6], PUBLISHED[:, 6]
    # Published to four places.
    np.testing.assert_allclose(colour.difference(first, second), expected, rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(
        colour.difference(second, first), colour.difference(first, second), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    "given, expected",
    [
        ("#ffffff", (100, 0, 0)),
        ("#000", (0, 0, 0)),
        ("#F00", (53.2408, 80.0925, 67.2032)),
        ("#00ff00", (87.7347, -86.1827, 83.1793)),
        ("#0000ff", (32.2970, 79.1875, -107.8602)),
        ("#777777", (50.0344, 0, 0)),
    ],
)
def test_hex_colours_in_cielab(given, expected):
    # Published to four places, under a white given to five.
    np.testing.assert_allclose(colour.lab([given])[0], expected, rtol=0, atol=2e-3)


def test_a_palette_is_as_near_as_its_best_order():
    other = ["#ffffee", "#a0b1c0", "#202a44", "#e8dcc0"]
    between = [[float(colour.difference(*colour.lab([one, two]))) for two in other] for one in FOUR]
    best = (
        min(sum(between[at][to] for at, to in enumerate(to)) for to in permutations(range(4))) / 4
    )
    assert colour.palette_distance(FOUR, other) == pytest.approx(best)
    assert colour.palette_distance(FOUR, other) < np.diag(between).mean() - 10
    assert colour.palette_distance(FOUR, FOUR[::-1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "text, valid",
    [
        (' ["#1f2a44", "#E8DCC5", "#abc", "#ffffff"]\n', 1),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2"]', 0),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2", "#ffffff", "#000000"]', 0),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2", "white"]', 0),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2", "#ffff"]', 0),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2", 0]', 0),
        ('["#1f2a44", "#e8dcc5", "#a0b1c2", "#ffffff"', 0),
        ("['#1f2a44', '#e8dcc5', '#a0b1c2', '#ffffff']", 0),
        ('{"colors": 4}', 0),
        ("4", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_a_palette_is_a_json_array_of_four_hex_colours(text, valid):
    assert per_row([colour.VALID], [made.answered(text)])["valid"] == [valid]


def test_what_is_no_palette_has_no_distance_and_does_not_count():
    truth = '["#1f2a44", "#e8dcc5", "#a0b1c2", "#ffffff"]'
    far = '["#000", "#000", "#000", "#000"]'
    rows = [made.answered(answer, (far, truth)) for answer in (truth, "blue", truth)]
    assert per_row([colour.DISTANCE], rows)["palette_distance"] == [0, None, 0]
    rows = [made.answered(far, (truth,)), made.answered("blue", (truth,))]
    figures = summarise([colour.VALID, colour.DISTANCE], rows, samples=1)
    assert figures["valid"].value == 0.5
    assert (
        figures["palette_distance"].value
        == per_row([colour.DISTANCE], rows[:1])["palette_distance"][0]
    )


def test_a_reference_that_is_no_palette_is_named():
    row = made.answered('["#000", "#000", "#000", "#000"]', ("blue",), place="palettes.csv:2")
    with pytest.raises(
        ValueError, match=r"palettes\.csv:2 has the reference 'blue'; expected a JSON array"
    ):
        per_row([colour.DISTANCE], [row])
