"""Fingerprint of an adapter's base weights: a sample of their values, to recognise them again.

It is stored in the metadata of the adapter's own weight file, so it goes wherever the adapter goes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.quant import is_quantized

KEY = "jaxtune_base"
COUNT = 256  # values in a fingerprint, about 3 kB of text
# Largest relative distance |a - b| / |a| between two fingerprints of one weight. Two roundings to
# bfloat16 give up to 2e-3 and 4-bit quantisation about 0.1; weights of unrelated models are about
# 1.4 apart. Weights that fine-tuning moved by less than this pass for the original ones.
ROUNDED = 2.0**-8
CODED = 0.5


@dataclass(frozen=True)
class Fingerprint:
    """Evenly spaced values of one layer of a weight."""

    path: str
    layer: int | None
    values: list[float]
    coded: bool  # whether the values come from a quantised weight

    @classmethod
    def of(cls, path: str, layer: int | None, weight: Any) -> "Fingerprint":
        """Takes the fingerprint of `weight`, which may be quantised."""
        numbers = np.asarray(weight.astype(np.float32)).ravel()
        places = np.linspace(0, numbers.size - 1, min(COUNT, numbers.size)).astype(int)
        values = [float(f"{number:.6g}") for number in numbers[places].tolist()]
        return cls(path, layer, values, is_quantized(weight))

    @classmethod
    def noted(cls, metadata: Mapping[str, str]) -> "Fingerprint | None":
        """Reads the fingerprint from a file's metadata; None if they have none."""
        if KEY not in metadata:
            return None
        try:
            return cls(**json.loads(metadata[KEY]))
        except (ValueError, TypeError):
            raise CheckpointError(
                f"the adapter's metadata has a {KEY} that jaxtune did not write: {metadata[KEY]!r}"
            ) from None

    @property
    def note(self) -> dict[str, str]:
        """Fingerprint as an entry of a file's metadata."""
        return {KEY: json.dumps(vars(self))}

    def apart(self, other: "Fingerprint") -> float:
        """Returns the distance to another fingerprint relative to the norm of this one."""
        ours, theirs = np.array(self.values), np.array(other.values)
        return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-30))

    def near(self, other: "Fingerprint") -> bool:
        """Whether two fingerprints may be of the same weight, quantised or not."""
        return self.apart(other) <= (CODED if self.coded or other.coded else ROUNDED)
