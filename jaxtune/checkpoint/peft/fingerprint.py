"""A few numbers of the weights that an adapter was trained beside, by which they are known again.

They stand in the metadata of the adapter's own file, and so go wherever it goes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.quant import is_quantized

KEY = "jaxtune_base"
COUNT = 256  # numbers, in about 3 kB of text
# How far one weight may be from itself, over its size: two roundings to bfloat16 take up to 2e-3,
# codes of 4 bits about a tenth; weights of unrelated models are 1.4 apart. One that was tuned so
# lightly that it moved by less passes for the one it was.
ROUNDED = 2.0**-8
CODED = 0.5


@dataclass(frozen=True)
class Fingerprint:
    """Numbers of one layer of a weight."""

    path: str
    layer: int | None
    values: list[float]
    coded: bool  # read from codes of few bits

    @classmethod
    def of(cls, path: str, layer: int | None, weight: Any) -> "Fingerprint":
        """Those of `weight`, which is quantised or plain."""
        numbers = np.asarray(weight.astype(np.float32)).ravel()
        places = np.linspace(0, numbers.size - 1, min(COUNT, numbers.size)).astype(int)
        values = [float(f"{number:.6g}") for number in numbers[places].tolist()]
        return cls(path, layer, values, is_quantized(weight))

    @classmethod
    def noted(cls, metadata: Mapping[str, str]) -> "Fingerprint | None":
        """What a file's metadata hold, if jaxtune wrote them."""
        if KEY not in metadata:
            return None
        try:
            return cls(**json.loads(metadata[KEY]))
        except (ValueError, TypeError):
            raise CheckpointError(
                f"the adapter's metadata have a {KEY} that jaxtune did not write: {metadata[KEY]!r}"
            ) from None

    @property
    def note(self) -> dict[str, str]:
        """The same as metadata."""
        return {KEY: json.dumps(vars(self))}

    def apart(self, other: "Fingerprint") -> float:
        """How far another is from this one, over this one's size."""
        ours, theirs = np.array(self.values), np.array(other.values)
        return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-30))

    def near(self, other: "Fingerprint") -> bool:
        """Whether both may be of one weight."""
        return self.apart(other) <= (CODED if self.coded or other.coded else ROUNDED)
