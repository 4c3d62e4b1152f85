"""Batches for a run: surveyed rows in order, padded or packed, shared among processes."""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from jaxtune.data import images
from jaxtune.data.batches import Batch, collate, fitting, sizes, split
from jaxtune.data.examples import Example, RowEncoder
from jaxtune.data.order import Order, Turn
from jaxtune.data.packing import Lines, one_each, packed
from jaxtune.data.sources import Source
from jaxtune.data.survey import Survey


@dataclass(frozen=True, eq=False)
class Step:
    """One step's batch."""

    number: int  # from 0, over all epochs
    epoch: int
    batch: Batch  # this process's share: [A, B / processes, …]
    places: list[str]  # of the rows in the share, line after line
    examples: int  # rows of the step, all processes together
    tokens: int  # and their tokens, without padding
    scored: int


class Loader:
    """An iterator over steps of `accumulate` micro-batches of `batch` lines each.

    A line is a row, or with `packing` the rows that fit it; it is padded to the shortest of
    `buckets` that holds it, by default of `sizes`. Every row comes once an epoch; the last step is
    filled with lines that weigh nothing. All processes see the same steps and shapes, each
    `process` (its index, their number) its lines of every micro-batch: joined, these are the same
    batch whatever their number.

    Pictures are decoded while the steps before are taken, and changed by chance as `augment` says:
    in the same way wherever `augment_seed`, epoch and row are the same.
    """

    def __init__(
        self,
        source: Source,
        encoder: RowEncoder,
        survey: Survey,
        *,
        batch: int,
        accumulate: int = 1,
        packing: bool = False,
        buckets: Sequence[int] = (),
        seed: int | None = None,
        epochs: int | None = 1,
        weighting: str = "token",
        augment: images.Steps = (),
        augment_seed: int = 0,
        process: tuple[int, int] = (0, 1),
        workers: int = 2,
        ahead: int = 4,
    ):
        index, count = process
        if batch % count:
            raise ValueError(f"a batch of {batch} lines cannot be shared by {count} processes")
        self._source, self._encoder, self._rows = source, encoder, survey.rows
        self._accumulate, self._weighting = accumulate, weighting
        self._augment, self._augment_seed = augment, augment_seed
        self.lines = _lines(survey, encoder.max_length, packing, seed)
        self._pictures = _of_lines(survey.pictures, self.lines)
        self._decoders = ThreadPoolExecutor(os.cpu_count())  # none starts before it has work
        # The process's lines among those of a step: of each micro-batch the same ones.
        slots = np.arange(accumulate * batch).reshape(accumulate, count, -1)
        self._slots: list[int] = slots[:, index].ravel().tolist()
        longest = encoder.max_length
        fixed = encoder.placeholders(min(survey.pictures.tolist(), default=0))
        self._lengths = (longest,) if packing else tuple(buckets) or sizes(longest, fixed=fixed)
        self._scored = sizes(longest, smallest=16)
        self._order = Order(
            len(self.lines),
            accumulate * batch,
            self._made,
            seed=seed,
            epochs=epochs,
            contents=_checksum(self.lines),
            workers=workers,
            ahead=ahead,
        )
        self.steps, self.steps_per_epoch = self._order.steps, self._order.steps_per_epoch

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Step:
        return next(self._order)

    def state(self) -> dict[str, int]:
        """Where the run stands in its data: a few integers, the same in all processes."""
        return self._order.state()

    def restore(self, state: dict[str, int]) -> None:
        """Go on where a state was taken, however many processes there were."""
        self._order.restore(state)

    def close(self) -> None:
        """Stop the threads."""
        self._order.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _made(self, turn: Turn) -> Step:
        """A step's batch; its shape is that of all processes' lines."""
        pad = self._encoder.tokenizer.pad
        chosen = [
            self.lines[turn.items[slot]] if slot < len(turn.items) else [] for slot in self._slots
        ]
        chosen = [[int(self._rows[row]) for row in line] for line in chosen]
        examples = [[self._example(row) for row in line] for line in chosen]
        length = fitting(int(self.lines.lengths[turn.items].max()), self._lengths)
        scored = fitting(int(self.lines.scored[turn.items].max()), self._scored)
        batch = collate(
            examples,
            shape=(len(examples), length, scored),
            pad=0 if pad is None else pad,
            weighting=self._weighting,
            full_prefix=self._encoder.full_prefix,
        )
        batch = batch.replace(images=self._seen(turn, chosen, examples))
        return Step(
            number=turn.step,
            epoch=turn.epoch,
            batch=split(batch, self._accumulate),
            places=[example.place for line in examples for example in line],
            examples=sum(len(self.lines[item]) for item in turn.items),
            tokens=int(self.lines.lengths[turn.items].sum()),
            scored=int(self.lines.scored[turn.items].sum()),
        )

    def _example(self, row: int) -> Example:
        return self._encoder(self._source[row], self._source.place(row))

    def _seen(
        self, turn: Turn, rows: Sequence[Sequence[int]], lines: Sequence[Sequence[Example]]
    ) -> np.ndarray | None:  # float32[lines, I, S, S, 3]
        """The pictures of a step's lines; I is a power of two, for few shapes."""
        wanted = self._encoder.pictures
        if wanted is None:
            return None
        most = int(self._pictures[turn.items].max())
        depth = 1 << (most - 1).bit_length()
        seen = np.zeros((len(lines), depth, wanted.size, wanted.size, 3), np.float32)
        work = [
            (number, example, (self._augment_seed, turn.epoch, row, picture))
            for number, line in enumerate(zip(lines, rows, strict=True))
            for example, row in zip(*line, strict=True)
            for picture in range(len(example.images))
        ]
        filled = [0] * len(lines)
        for (line, *_), pixels in zip(work, self._decoders.map(self._read, work), strict=True):
            seen[line, filled[line]] = pixels
            filled[line] += 1
        return seen

    def _read(self, work: tuple[int, Example, tuple[int, ...]]) -> np.ndarray:
        """The pixels of a picture of an example: float32[S, S, 3]."""
        _, example, key = work
        size = self._encoder.pictures.size
        return images.read(example.images[key[-1]], size, example.place, self._augment, key)


def _lines(survey: Survey, limit: int, packing: bool, seed: int | None) -> Lines:
    if packing:
        return packed(survey.lengths, survey.scored, limit, seed=seed)
    return one_each(survey.lengths, survey.scored)


def _of_lines(counts: np.ndarray, lines: Lines) -> np.ndarray:  # int32[N] -> int64[L]
    """The sum over the rows of each line."""
    sums = np.cumsum(counts[lines.rows], dtype=np.int64)[lines.ends - 1]
    return np.diff(sums, prepend=0)


def _checksum(lines: Lines) -> int:
    """A number that another set of rows, or rows of other lengths, would hardly have."""
    arrays = (lines.rows, lines.ends, lines.lengths, lines.scored)
    return zlib.crc32(b"".join(array.astype(np.int64).tobytes() for array in arrays))
