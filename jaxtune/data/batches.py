"""Collates examples into the arrays of a step, padded or packed, in few different shapes."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from flax import struct

from jaxtune.data.errors import known
from jaxtune.data.examples import Example
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import typed

WEIGHTS = ("token", "example")


@struct.dataclass
class Batch:
    """Arrays of one step: [A, B, …] with a leading axis of micro-batches, [B, …] without."""

    tokens: Any  # int32[B, T]
    positions: Any  # int32[B, T], from 0 for every example
    segments: Any  # int32[B, T], index of the example within its line
    valid: Any  # bool[B, T], False at padding
    causal: Any  # bool[B, T], False in a bidirectional prefix; or None
    where: Any  # int32[B, K], positions whose hidden state predicts a scored token
    targets: Any  # int32[B, K], the scored tokens themselves
    weights: Any  # float32[B, K], weights of their losses; 0 at padding
    images: Any = None  # float32[B, I, S, S, 3], the pictures of each line in order; or None


def sizes(longest: int, smallest: int = 32, fixed: int = 0) -> tuple[int, ...]:
    """Returns ascending lengths to pad to: powers of two, 1.5 times these, and `longest`.

    Neighbouring sizes differ by a factor of 1.5 at most, so that there are few shapes and little
    padding. `fixed` tokens that every row has, such as a picture's, are added to each size.
    """
    if fixed:
        return tuple(fixed + size for size in sizes(longest - fixed, smallest))
    steps = [smallest << power for power in range(longest.bit_length())]
    steps = sorted({*steps, *(step * 3 // 2 for step in steps)})
    return (*(step for step in steps if step < longest), longest)


def fitting(length: int, among: Sequence[int]) -> int:
    """Returns the smallest of some ascending sizes that is at least `length`."""
    for size in among:
        if size >= length:
            return size
    raise UserError(f"{length:,} tokens exceed the largest size, {among[-1]:,}")


def collate(
    lines: Sequence[Example | Sequence[Example]],
    *,
    shape: tuple[int, int, int] | None = None,  # B, T, K
    pad: int = 0,
    weighting: str = "token",
    full_prefix: bool = False,
) -> Batch:
    """Collates lines of one or several examples into one batch.

    Args:
      lines: An example for each line, or several that are packed into it; at most B lines.
      shape: Sizes (B, T, K) of the batch; missing lines, tokens and scored positions are padding.
        By default there is as little padding as possible, which makes a shape of its own of most
        batches.
      pad: Token id of padding.
      weighting: "token" gives every scored token the weight 1; "example" gives the scored tokens
        of an example weights that sum to 1.
      full_prefix: Whether the batch has a `causal` array, for examples whose prefix attends to
        itself in both directions.

    Returns:
      The batch as NumPy arrays, without images.
    """
    known("weighting", weighting, WEIGHTS)
    packed = [_line(number, line) for number, line in enumerate(lines)]
    batch = _empty(shape or _smallest(packed), pad, full_prefix)
    if len(packed) > len(batch.tokens):
        raise UserError(f"found {len(packed)} lines for a batch of {len(batch.tokens)}")
    for row, line in enumerate(packed):
        start = filled = 0
        for segment, example in enumerate(line):
            start, filled = _place(batch, row, segment, start, filled, example, weighting)
    return batch


def split(batch: Batch, accumulate: int) -> Batch:
    """Splits a batch into `accumulate` micro-batches: [A·B, …] -> [A, B, …]."""
    import jax

    def divided(array: np.ndarray) -> np.ndarray:
        if len(array) % accumulate:
            raise UserError(
                f"{len(array)} lines cannot be split into {accumulate} equal micro-batches"
            )
        return array.reshape(accumulate, -1, *array.shape[1:])

    return jax.tree.map(divided, batch)


def stacked(batches: Sequence[Batch]) -> Batch:
    """Stacks batches of the same lines and micro-batches along a new first axis.

    Those with fewer tokens, scored positions or pictures than the largest are padded.
    """

    def joined(name: str) -> np.ndarray | None:
        arrays = [getattr(batch, name) for batch in batches]
        if arrays[0] is None:
            return None
        shape = tuple(map(max, *(array.shape for array in arrays)))
        value = name == "causal"  # padding is causal, see `_empty`; everything else of it is 0
        return np.stack([_padded(array, shape, value) for array in arrays])

    return Batch(**{each.name: joined(each.name) for each in fields(Batch)})


def _line(number: int, line: Any) -> Sequence[Example]:
    """Returns the examples of a line; raises UserError for anything else."""
    found = [line] if isinstance(line, Example) else line
    if not isinstance(found, list | tuple) or not all(isinstance(x, Example) for x in found):
        raise UserError(
            f"line {number} is {typed(line)}; expected an Example, or a list of several "
            "to be packed. A RowEncoder makes them of rows: encode(row, place)"
        )
    return found


def _smallest(lines: Sequence[Sequence[Example]]) -> tuple[int, int, int]:
    """Returns the smallest (B, T, K) that lines fit, each at least 1."""
    tokens = [sum(len(example.tokens) for example in line) for line in lines]
    scored = [sum(int(example.scored.sum()) for example in line) for line in lines]
    return max(1, len(lines)), max([1, *tokens]), max([1, *scored])


def _padded(array: np.ndarray, shape: Sequence[int], value: int) -> np.ndarray:
    widths = [(0, size - now) for size, now in zip(shape, array.shape, strict=True)]
    return np.pad(array, widths, constant_values=value)


def _empty(shape: tuple[int, int, int], pad: int, causal: bool) -> Batch:
    """Returns a batch of padding."""
    lines, length, scored = shape
    return Batch(
        tokens=np.full((lines, length), pad, np.int32),
        positions=np.zeros((lines, length), np.int32),
        segments=np.zeros((lines, length), np.int32),
        valid=np.zeros((lines, length), bool),
        causal=np.ones((lines, length), bool) if causal else None,
        where=np.zeros((lines, scored), np.int32),
        targets=np.zeros((lines, scored), np.int32),
        weights=np.zeros((lines, scored), np.float32),
    )


def _place(
    batch: Batch,
    row: int,
    segment: int,
    start: int,
    filled: int,
    example: Example,
    weighting: str,
) -> tuple[int, int]:
    """Writes an example into a line; returns where its next token and its next target go."""
    at = slice(start, start + len(example.tokens))
    if at.stop > batch.tokens.shape[1]:
        raise UserError(
            f"{example.place}: {at.stop:,} tokens do not fit on a line of {batch.tokens.shape[1]:,}"
        )
    batch.tokens[row, at] = example.tokens
    batch.positions[row, at] = np.arange(len(example.tokens))
    batch.segments[row, at] = segment
    batch.valid[row, at] = True
    if batch.causal is not None:
        batch.causal[row, at] = True if example.causal is None else example.causal
    scored = np.flatnonzero(example.scored)
    to = slice(filled, filled + len(scored))
    if to.stop > batch.where.shape[1]:
        raise UserError(
            f"{example.place}: {to.stop:,} scored tokens do not fit on a line of "
            f"{batch.where.shape[1]:,}"
        )
    batch.where[row, to] = start + scored - 1
    batch.targets[row, to] = example.tokens[scored]
    batch.weights[row, to] = 1 / len(scored) if weighting == "example" else 1
    return at.stop, to.stop
