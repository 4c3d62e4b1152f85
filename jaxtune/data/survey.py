"""One reading of all rows before a run: how long they are, what is scored, which are left out."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxtune.data.errors import DataError, RowError, Skipped, TooLong
from jaxtune.data.examples import RowEncoder
from jaxtune.data.sources import Source

CHUNK = 256  # rows between two reports of progress

Counts = tuple[int, int, int, int]  # tokens, scored tokens, pictures, tokens cut


@dataclass(frozen=True, eq=False)
class Survey:
    """The rows of a source that a run uses, and the counts to print."""

    rows: np.ndarray  # int64[N], their numbers in the source
    lengths: np.ndarray  # int32[N], tokens of each
    scored: np.ndarray  # int32[N], those of them that are scored
    pictures: np.ndarray  # int32[N], pictures of each
    cut: int  # rows that were cut to fit
    cut_tokens: int
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
        """Of all tokens, those that are scored."""
        return self.scored_tokens / self.tokens


def survey(
    source: Source,
    encoder: RowEncoder,
    *,
    malformed: str = "fail",
    workers: int = 2,
    progress: Callable[[int], None] = lambda rows: None,
) -> Survey:
    """Make an example of each row and keep its counts; the rows are made again when used.

    Of pictures it is seen that they are there, and not what they show.

    `malformed` rows "fail", or are left out and counted under "skip"; `encoder.too_long` says the
    same of long ones. A row in which nothing is scored always fails. `progress` is told how many
    rows have been read.
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
        raise DataError(f"none of the {len(source):,} rows can be used; the first: {first}")
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
    """Each row's counts, or what is wrong with it, in the rows' order."""

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
