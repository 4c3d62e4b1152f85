"""Fingerprint of an adapter's base: values of every leaf in every layer, to recognise it again.

It is stored in the metadata of the adapter's own weight file, so it goes wherever the adapter goes.
"""

import base64
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxtune.checkpoint.formats.safetensors import CheckpointError
from jaxtune.families.names import Piece
from jaxtune.sharding import to_host

KEY = "jaxtune_base"
VERSION = 2  # version 1 had no number, and many values of a single layer of a single leaf
PER_LAYER = 8  # values of each layer of a stacked leaf: about 40 kB of text for 80 layers
WHOLE = 64  # values of a leaf that is not stacked, such as the embedding
# Largest relative distance |a - b| / |a| between values of one weight. A rounding to bfloat16 gives
# up to 2e-3 and 4-bit quantisation about 0.1; weights of unrelated models are about 1.4 apart, and
# a negated weight is 2 apart. Quantised weights that fine-tuning moved by less pass for the same.
ROUNDED = 2.0**-8
CODED = 0.5
# The same bound for layers whose few values happen to be small: a fraction of the root mean square
# of the leaf's values in all layers. 4-bit quantisation moves them by about 0.1 of it.
CODED_OF_LEAF = 0.2
SUBNORMAL = 2.0**-24  # twice the largest rounding of the least float16 values
NARROW = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16))
MOST_NAMED = 4  # leaves, and layers of each, in an error message

Layers = tuple[int | None, ...]  # None: the leaf is not stacked
Read = Callable[[Piece, np.ndarray], np.ndarray]  # values of a piece at places of our layout


@dataclass(frozen=True)
class Sample:
    """Evenly spaced values of one leaf."""

    layers: Layers
    values: np.ndarray  # float32[layers, n]
    coded: bool  # whether the values come from a quantised weight

    def apart(self, other: "Sample") -> np.ndarray:  # float64[layers]
        """Returns each layer's distance to another sample relative to the norm of this one."""
        ours, theirs = self.values.astype(np.float64), other.values.astype(np.float64)
        norms = np.maximum(np.linalg.norm(ours, axis=-1), 1e-30)
        return np.linalg.norm(theirs - ours, axis=-1) / norms

    def near(self, other: "Sample") -> np.ndarray:  # bool[layers]
        """Returns, for each layer, whether both samples may be of one weight.

        Two plain weights must be equal, but for a rounding of either to 16 bits. If either is
        quantised, they must be closer to each other than to an unrelated weight.
        """
        if self.coded or other.coded:
            spread = math.sqrt(np.square(self.values, dtype=np.float64).mean())
            norms = np.linalg.norm(self.values.astype(np.float64), axis=-1)
            leaf = CODED_OF_LEAF * math.sqrt(self.values.shape[-1]) * spread
            return self.apart(other) * np.maximum(norms, 1e-30) <= np.maximum(CODED * norms, leaf)
        pairs = zip(self.values, other.values, strict=True)
        return np.array([_same_but_rounded(*pair) for pair in pairs])


@dataclass(frozen=True)
class Fingerprint:
    """Samples of the leaves of a base, by slash path.

    A fingerprint of version 1 is not `complete`: it has one layer of one leaf, whose values are
    rounded to six digits.
    """

    samples: Mapping[str, Sample]
    complete: bool = True

    @classmethod
    def of(
        cls,
        leaves: Mapping[str, Sequence[Piece]],
        coded: Collection[str],
        read: Read,
        like: "Fingerprint | None" = None,
    ) -> "Fingerprint":
        """Takes the fingerprint of a checkpoint.

        Args:
          leaves: the pieces of each leaf, by slash path.
          coded: names of the tensors that the checkpoint stores in 4 bits.
          read: returns values of a piece, given their places in our flattened layout of it.
          like: a fingerprint to compare with; only what it has is read if it is not complete.

        Returns:
          The fingerprint.
        """
        partial = like.samples if like and not like.complete else None
        samples = {}
        for path, pieces in leaves.items():
            if partial is None:
                layers = None
                count = WHOLE if pieces[0].layer is None else PER_LAYER
            elif path in partial:
                layers, count = partial[path].layers, partial[path].values.shape[-1]
            else:
                continue
            taken = [piece for piece in pieces if layers is None or piece.layer in layers]
            if taken:
                samples[path] = Sample(
                    tuple(piece.layer for piece in taken),
                    np.stack([read(piece, _places(piece.own, count)) for piece in taken]),
                    any(piece.theirs in coded for piece in taken),
                )
        return cls(samples, partial is None)

    @classmethod
    def of_arrays(
        cls,
        leaves: Mapping[str, Sequence[Piece]],
        arrays: Mapping[str, jax.Array | np.ndarray],
    ) -> "Fingerprint":
        """Takes the fingerprint of some leaves in memory, on all processes together."""
        samples = {}
        for path, array in arrays.items():
            layers = tuple(piece.layer for piece in leaves[path])
            stacked = layers[0] is not None
            own = leaves[path][0].own
            index = np.unravel_index(_places(own, PER_LAYER if stacked else WHOLE), own)
            if stacked:
                index = (np.arange(len(layers))[:, None], *index)
            values = to_host(_taken(array, index)).reshape(len(layers), -1)
            samples[path] = Sample(layers, values.astype(np.float32), coded=False)
        return cls(samples)

    @classmethod
    def noted(cls, metadata: Mapping[str, str]) -> "Fingerprint | None":
        """Reads the fingerprint from a file's metadata; None if they have none."""
        if KEY not in metadata:
            return None
        try:
            noted = json.loads(metadata[KEY])
            return _first_version(**noted) if "version" not in noted else _read(**noted)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            found = str(metadata[KEY])
            raise CheckpointError(
                f"the adapter's metadata has a {KEY} that jaxtune did not write, or a newer version"
                f" of it: {found[:60]!r}{'…' if len(found) > 60 else ''}"
            ) from None

    @property
    def note(self) -> dict[str, str]:
        """Fingerprint as an entry of a file's metadata."""
        leaves = {
            path: {
                "count": sample.values.shape[-1],
                "values": base64.b64encode(sample.values.astype("<f4").tobytes()).decode(),
                **({"coded": True} if sample.coded else {}),
            }
            for path, sample in self.samples.items()
        }
        return {KEY: json.dumps({"version": VERSION, "leaves": leaves}, separators=(",", ":"))}

    def differences(self, found: "Fingerprint") -> list[str]:
        """Describes each leaf of `found` that is not that of this fingerprint's base."""
        described = []
        for path in sorted(self.samples.keys() | found.samples.keys()):
            ours, theirs = self.samples.get(path), found.samples.get(path)
            if ours is None or theirs is None or ours.values.shape != theirs.values.shape:
                if self.complete:
                    described.append(f"{path} is {_unlike(ours, theirs)}")
                continue
            near = self._near(ours, theirs)
            if not near.all():
                apart = ours.apart(theirs)[~near].max()
                differs = f"differs by {apart:.2g} of its norm"
                if not np.isfinite(theirs.values).all():
                    differs = "holds values that are not finite"
                described.append(f"{path} {differs}{_in_layers(theirs, near)}")
        return described

    def only(self, paths: Iterable[str]) -> "Fingerprint":
        """Returns the samples of some leaves."""
        return Fingerprint({path: self.samples[path] for path in paths})

    def _near(self, ours: Sample, theirs: Sample) -> np.ndarray:
        if self.complete:
            return ours.near(theirs)
        return ours.apart(theirs) <= (CODED if ours.coded or theirs.coded else ROUNDED)


def _read(version: int, leaves: Mapping[str, Mapping[str, Any]]) -> Fingerprint:
    if version != VERSION:
        raise ValueError
    samples = {}
    for path, leaf in leaves.items():
        raw = base64.b64decode(leaf["values"], validate=True)
        values = np.frombuffer(raw, "<f4").reshape(-1, leaf["count"])
        samples[path] = Sample(tuple(range(len(values))), values, bool(leaf.get("coded")))
    return Fingerprint(samples)


def _first_version(path: str, layer: int | None, values: list[float], coded: bool) -> Fingerprint:
    numbers = np.array([values], np.float32)
    if numbers.ndim != 2 or not numbers.size:
        raise ValueError
    return Fingerprint({str(path): Sample((layer,), numbers, bool(coded))}, complete=False)


@jax.jit
def _taken(array: jax.Array, index: tuple[np.ndarray, ...]) -> jax.Array:
    return array[index]


def _places(own: tuple[int, ...], count: int) -> np.ndarray:
    """Returns at most `count` evenly spaced places in a flattened array of this shape."""
    size = math.prod(own)
    return np.linspace(0, size - 1, min(count, size)).astype(int)


def _same_but_rounded(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether values are equal but for a rounding of either side to 16 bits.

    If one side was rounded to bfloat16 and the other to float16, they differ by both roundings.
    """
    exact = []  # for each side, the 16-bit dtypes that hold its values
    for one, other in ((ours, theirs), (theirs, ours)):
        narrow = {kind: _rounded(one, kind) for kind in NARROW}
        if any(np.array_equal(each, other, equal_nan=True) for each in (one, *narrow.values())):
            return True
        exact.append({kind for kind, each in narrow.items() if np.array_equal(each, one)})
    if not all(exact) or len(set.union(*exact)) == 1:
        return False
    return bool((np.abs(ours - theirs) <= ROUNDED * np.abs(ours) + SUBNORMAL).all())


def _rounded(values: np.ndarray, kind: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(kind).astype(np.float32)


def named(differences: Sequence[str]) -> str:
    """Joins descriptions of leaves that differ for an error message, at most `MOST_NAMED`."""
    more = f", and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else ""
    return ", ".join(differences[:MOST_NAMED]) + more


def _unlike(ours: Sample | None, theirs: Sample | None) -> str:
    if ours is None or theirs is None:
        return "not in that base" if ours is None else "missing"
    return "of another shape"


def _in_layers(sample: Sample, near: np.ndarray) -> str:
    """Names the layers in which a sample is not near, as the end of a sentence."""
    other = [layer for layer, fine in zip(sample.layers, near, strict=True) if not fine]
    if other[0] is None:
        return ""
    if len(other) == len(near) > 1:
        return " in all layers"
    more = f" and {len(other) - MOST_NAMED} more" if len(other) > MOST_NAMED else ""
    shown = ", ".join(map(str, other[:MOST_NAMED]))
    return f" in layer{'s' * (len(other) > 1)} {shown}{more}"
