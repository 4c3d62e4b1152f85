"""Reads all rows once before a run: lengths, scored tokens, and the rows that are left out."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxtune.data.errors import DataError, RowError, Skipped, TooLong
from jaxtune.data.examples import RowEncoder
from jaxtune.data.sources import Source

CHUNK = 256  # rows between two progress reports

Counts = tuple[int, int, int, int]  # tokens, scored tokens, pictures, tokens cut


@dataclass(frozen=True, eq=False)
class Survey:
    """Rows of a source that a run uses, with their counts."""

    rows: np.ndarray  # int64[N], their indices in the source
    lengths: np.ndarray  # int32[N], tokens of each
    scored: np.ndarray  # int32[N], scored tokens of each
    pictures: np.ndarray  # int32[N], pictures of each
    cut: int  # rows that were cut to fit
    cut_tokens: int  # tokens removed from them
    too_long: Skipped
    malformed: Skipped

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def scored_tokens(self) -> int:
        return int(self.scored.sum(dtype=np.int64))

    @property
    def longest(self) -> int:
        return int(self.lengths.max())

    @property
    def share(self) -> float:
        """Fraction of all tokens that is scored."""
        return self.scored_tokens / self.tokens


def survey(
    source: Source,
    encoder: RowEncoder,
    *,
    malformed: str = "fail",
    workers: int = 2,
    progress: Callable[[int], None] = lambda rows: None,
) -> Survey:
    """Encodes every row once and keeps its counts; the examples are made again when they are used.

    Pictures are checked for existence and format, not decoded. A row in which nothing is scored is
    always an error.

    Args:
      source: Rows to read.
      encoder: Makes examples of rows; if its `too_long` is "skip", rows that are too long are left
        out and counted.
      malformed: "fail" raises the error of a malformed row; "skip" leaves it out and counts it.
      workers: Threads that encode rows.
      progress: Called with the number of rows read so far.

    Returns:
      The rows that can be used, with their counts.
    """
    skipped, long = Skipped(malformed), Skipped("skip" if encoder.too_long == "skip" else "fail")
    kept: list[tuple[int, ...]] = []  # row, tokens, scored, pictures, cut
    for row, found in enumerate(_counted(source, encoder, workers, progress)):
        if isinstance(found, RowError):
            (long if isinstance(found, TooLong) else skipped).note(found)
        else:
            kept.append((row, *found))
    if not kept:
        first = [*skipped.first, *long.first][0]
        raise DataError(f"none of the {len(source):,} rows can be used; the first error: {first}")
    rows, lengths, scored, pictures, cut = np.array(kept, np.int64).T
    return Survey(
        rows=rows,
        lengths=lengths.astype(np.int32),
        scored=scored.astype(np.int32),
        pictures=pictures.astype(np.int32),
        cut=int(np.count_nonzero(cut)),
        cut_tokens=int(cut.sum()),
        too_long=long,
        malformed=skipped,
    )


def _counted(
    source: Source, encoder: RowEncoder, workers: int, progress: Callable[[int], None]
) -> Iterator[Counts | RowError]:
    """Yields the counts of each row, or its error, in the order of the rows."""

    def read(row: int) -> Counts | RowError:
        try:
            example = encoder(source[row], source.place(row))
        except RowError as error:
            return error
        scored = int(np.count_nonzero(example.scored))
        return len(example.tokens), scored, len(example.images), example.cut

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            yield from pool.map(read, rows)
            progress(rows.stop)
