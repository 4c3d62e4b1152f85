"""Perceptual distance of colours (CIEDE2000), and metrics of palettes of four."""

import json
import re
from itertools import permutations

import numpy as np

from jaxtune.display.errors import UserError
from jaxtune.metrics.metric import Prediction, mean, named, references

COUNT = 4
COLOUR = re.compile(r"#([0-9a-f]{3}|[0-9a-f]{6})", re.IGNORECASE)
# Linear sRGB to XYZ with white point D65 (IEC 61966-2-1), and the white point itself.
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375],
                [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = XYZ.sum(1)
ORDERS = np.array(list(permutations(range(COUNT))))  # [24, 4]


def palette(text: str) -> list[str] | None:
    """Returns the colours of a JSON array of exactly four hex colours, or None for other text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    listed = found if isinstance(found, list) and len(found) == COUNT else [None]
    return (
        found if all(isinstance(each, str) and COLOUR.fullmatch(each) for each in listed) else None
    )


def lab(colours: list[str]) -> np.ndarray:
    """Returns hex colours in CIELAB, float64[n, 3]."""
    digits = ["".join(each[1:] if len(each) == 7 else [two * 2 for two in each[1:]])
              for each in colours]  # fmt: skip
    values = np.array([list(bytes.fromhex(each)) for each in digits]) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    light = linear @ XYZ.T / WHITE
    # CIELAB's curve: a cube root, continued near black by a straight line.
    x, y, z = np.where(light > (6 / 29) ** 3, np.cbrt(light), light * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns CIEDE2000 between CIELAB colours [..., 3] (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    stretch = 1 + 0.5 * (1 - _seventh((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * stretch)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn, hue = (h2 - h1 + 180) % 360 - 180, _between(h1, h2)
    chroma, light = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    by_light = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    # A grey has no defined hue, but its chroma of 0 cancels whatever value is used here.
    by_hue = 2 * np.sqrt(c1 * c2) * _sin(turn / 2) / (1 + 0.015 * chroma * _weight(hue))
    bend = -2 * _seventh(chroma) * _sin(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    return np.sqrt(by_light**2 + by_chroma**2 + by_hue**2 + bend * by_chroma * by_hue)


def _seventh(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the mean of two hues in degrees, along the shorter arc."""
    mean = (first + second) / 2
    return np.where(abs(first - second) > 180, (mean + 180) % 360, mean)


def _weight(hue: np.ndarray) -> np.ndarray:
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    return 1 + sum(size * np.cos(np.radians(times * hue + start)) for size, times, start in waves)


def _sin(degrees: np.ndarray) -> np.ndarray:
    return np.sin(np.radians(degrees))


def palette_distance(first: list[str], second: list[str]) -> float:
    """Returns the least mean CIEDE2000 over all one-to-one pairings of two palettes of four."""
    between = difference(lab(first)[:, None], lab(second)[None])  # [4, 4]
    return float(between[np.arange(COUNT), ORDERS].mean(1).min())


def _nearest(row: Prediction) -> float | None:
    """Returns the distance to the nearest reference, or None if the answer is no palette.

    Such rows do not count; the metric `valid` is the share of answers that are palettes.
    """
    given = palette(row.answer)
    return given and min(palette_distance(given, _expected(row, each)) for each in references(row))


def _expected(row: Prediction, reference: str) -> list[str]:
    colours = palette(reference)
    if colours is None:
        raise UserError(
            f"{named(row)} has the reference {reference[:60]!r}; expected a JSON array of four hex "
            "colours"
        )
    return colours


VALID = mean("valid", lambda row: float(palette(row.answer) is not None))
DISTANCE = mean("palette_distance", _nearest, higher=False)
