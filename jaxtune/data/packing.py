"""Assigns rows to the lines of a batch, once and from their lengths alone."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines of a batch, each of one or more rows; `lines[i]` are the rows of line i."""

    rows: np.ndarray  # int64[N], row indices, line after line
    ends: np.ndarray  # int64[L], end of each line in `rows`
    lengths: np.ndarray  # int64[L], tokens of each line
    scored: np.ndarray  # int64[L], scored tokens of each line

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, line: int) -> np.ndarray:  # int64[members]
        return self.rows[self.ends[line - 1] if line else 0 : self.ends[line]]


def one_each(lengths: np.ndarray, scored: np.ndarray) -> Lines:  # int32[N] both
    """Returns lines of one row each, for batches without packing."""
    rows = np.arange(len(lengths))
    return Lines(rows, rows + 1, lengths.astype(np.int64), scored.astype(np.int64))


def packed(
    lengths: np.ndarray,  # int32[N]
    scored: np.ndarray,  # int32[N]
    limit: int,
    *,
    window: int = 1024,
    seed: int | None = None,
) -> Lines:
    """Packs rows into lines by first fit, longest first, within windows of consecutive rows.

    Args:
      lengths: Tokens of each row.
      scored: Scored tokens of each row.
      limit: Maximum number of tokens per line.
      window: Rows that are packed together; a line depends on the rows of its window alone.
      seed: Shuffles the rows first, so that rows that are neighbours in the file do not always
        share a line. None keeps their order.

    Returns:
      The lines, in the order of their windows.
    """
    rows = np.arange(len(lengths))
    if seed is not None:
        rows = np.random.RandomState(seed).permutation(len(lengths))  # NumPy has frozen this stream
    lines: list[list[int]] = []
    for start in range(0, len(rows), window):
        lines += _first_fit(rows[start : start + window], lengths, limit)
    flat = np.concatenate([np.array(line, np.int64) for line in lines])
    ends = np.cumsum([len(line) for line in lines])
    starts = ends - [len(line) for line in lines]
    totals = (
        np.add.reduceat(counts.astype(np.int64)[flat], starts) for counts in (lengths, scored)
    )
    return Lines(flat, ends, *totals)


def _first_fit(rows: np.ndarray, lengths: np.ndarray, limit: int) -> list[list[int]]:
    """Returns the lines of one window: each row goes on the first line that has room for it."""
    room = np.full(len(rows), limit)
    lines: list[list[int]] = []
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        line = int(np.argmax(room[: len(lines) + 1] >= lengths[row]))
        if line == len(lines):
            lines.append([])
        lines[line].append(int(row))
        room[line] -= lengths[row]
    return [sorted(line) for line in lines]
