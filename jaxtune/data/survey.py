"""Reads all rows once before a run: lengths, scored tokens, and the rows that are left out."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxtune.data.errors import DataError, RowError, Skipped, TooLong
from jaxtune.data.examples import RowEncoder
from jaxtune.data.sources import Source

CHUNK = 256  # rows between two progress reports

Counts = tuple[int, ...]  # tokens, scored tokens, pictures, checksum, tokens cut


@dataclass(frozen=True, eq=False)
class Survey:
    """Rows of a source that a run uses, with their counts."""

    rows: np.ndarray  # int64[N], their indices in the source
    lengths: np.ndarray  # int32[N], tokens of each
    scored: np.ndarray  # int32[N], scored tokens of each
    pictures: np.ndarray  # int32[N], pictures of each
    checksums: np.ndarray  # uint32[N], `Example.checksum` of each
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
    always an error. If rows are too long and may not be, the longest of all is reported.

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
    skipped, long = Skipped(malformed), Skipped("skip")
    longest: TooLong | None = None
    kept: list[tuple[int, ...]] = []  # row and its counts
    for row, found in enumerate(_counted(source, encoder, workers, progress)):
        if isinstance(found, TooLong):
            long.note(found)
            longest = max(longest or found, found, key=lambda error: error.length)
        elif isinstance(found, RowError):
            if malformed == "fail":
                source.check()  # the row may be malformed because the file is being rewritten
            skipped.note(found)
        else:
            kept.append((row, *found))
    source.check()
    if longest and encoder.too_long != "skip":
        raise _long(longest, long.count, len(source))
    if not kept:
        first = [*skipped.first, *long.first][0]
        raise DataError(f"none of the {len(source):,} rows can be used; the first error: {first}")
    rows, lengths, scored, pictures, checksums, cut = np.array(kept, np.int64).T
    return Survey(
        rows=rows,
        lengths=lengths.astype(np.int32),
        scored=scored.astype(np.int32),
        pictures=pictures.astype(np.int32),
        checksums=checksums.astype(np.uint32),
        cut=int(np.count_nonzero(cut)),
        cut_tokens=int(cut.sum()),
        too_long=long,
        malformed=skipped,
    )


def _long(longest: TooLong, count: int, rows: int) -> TooLong:
    """Returns the error of the longest row, which tells how many of the rows are too long."""
    if count == 1:
        return longest
    problem = f"{longest.problem}. It is the longest of {count:,} such rows, out of {rows:,}"
    return TooLong(longest.place, problem, longest.length)


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
        return len(example.tokens), scored, len(example.images), example.checksum, example.cut

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(source), CHUNK):
            rows = range(start, min(start + CHUNK, len(source)))
            yield from pool.map(read, rows)
            progress(rows.stop)
