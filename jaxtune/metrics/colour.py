"""How near colours look: CIEDE2000, and palettes of four."""

import json
import re
from itertools import permutations

import numpy as np

from jaxtune.metrics.metric import Prediction, mean, named, references

COUNT = 4
COLOUR = re.compile(r"#([0-9a-f]{3}|[0-9a-f]{6})", re.IGNORECASE)
# Linear sRGB to XYZ under the white D65 (IEC 61966-2-1), and that white.
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375],
                [0.2126729, 0.7151522, 0.0721750],
                [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
WHITE = XYZ.sum(1)
ORDERS = np.array(list(permutations(range(COUNT))))  # [24, 4]


def palette(text: str) -> list[str] | None:
    """The colours of a JSON array of exactly four; None of anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    listed = found if isinstance(found, list) and len(found) == COUNT else [None]
    return (
        found if all(isinstance(each, str) and COLOUR.fullmatch(each) for each in listed) else None
    )


def lab(colours: list[str]) -> np.ndarray:
    """Hex colours in CIELAB, float64[n, 3]."""
    digits = ["".join(each[1:] if len(each) == 7 else [two * 2 for two in each[1:]])
              for each in colours]  # fmt: skip
    values = np.array([list(bytes.fromhex(each)) for each in digits]) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    light = linear @ XYZ.T / WHITE
    # The cube root, and near black the line that meets it.
    x, y, z = np.where(light > (6 / 29) ** 3, np.cbrt(light), light * (29 / 6) ** 2 / 3 + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CIEDE2000 between colours in CIELAB (Sharma, Wu and Dalal 2005), over their last axis."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    stretch = 1 + 0.5 * (1 - _seventh((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a * stretch)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn, hue = (h2 - h1 + 180) % 360 - 180, _between(h1, h2)
    chroma, light = (c1 + c2) / 2, ((l1 + l2) / 2 - 50) ** 2
    by_light = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    # A grey has no hue: whatever it is taken for here is multiplied by 0.
    by_hue = 2 * np.sqrt(c1 * c2) * _sin(turn / 2) / (1 + 0.015 * chroma * _weight(hue))
    bend = -2 * _seventh(chroma) * _sin(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    return np.sqrt(by_light**2 + by_chroma**2 + by_hue**2 + bend * by_chroma * by_hue)


def _seventh(chroma: np.ndarray) -> np.ndarray:
    return np.sqrt(chroma**7 / (chroma**7 + 25.0**7))


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean hue, on the shorter way round."""
    mean = (first + second) / 2
    return np.where(abs(first - second) > 180, (mean + 180) % 360, mean)


def _weight(hue: np.ndarray) -> np.ndarray:
    waves = ((-0.17, 1, -30), (0.24, 2, 0), (0.32, 3, 6), (-0.20, 4, -63))
    return 1 + sum(size * np.cos(np.radians(times * hue + start)) for size, times, start in waves)


def _sin(degrees: np.ndarray) -> np.ndarray:
    return np.sin(np.radians(degrees))


def palette_distance(first: list[str], second: list[str]) -> float:
    """The mean difference of four colours to four, each to its own, however they are ordered."""
    between = difference(lab(first)[:, None], lab(second)[None])  # [4, 4]
    return float(between[np.arange(COUNT), ORDERS].mean(1).min())


def _nearest(row: Prediction) -> float | None:
    """Of the references; a row without a palette does not count: `valid` says how many have one."""
    given = palette(row.answer)
    return given and min(palette_distance(given, _expected(row, each)) for each in references(row))


def _expected(row: Prediction, reference: str) -> list[str]:
    colours = palette(reference)
    if colours is None:
        raise ValueError(
            f"{named(row)} has the reference {reference[:60]!r}; a JSON array of four hex colours "
            "was expected"
        )
    return colours


VALID = mean("valid", lambda row: float(palette(row.answer) is not None))
DISTANCE = mean("palette_distance", _nearest, higher=False)
