"""Loads the batches of a run: surveyed rows, padded or packed, shared among processes."""

import os
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import ge
from typing import Any

import numpy as np

from jaxtune.data import images
from jaxtune.data.batches import Batch, collate, fitting, sizes, split
from jaxtune.data.datafile import About, changes
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.examples import Example, RowEncoder
from jaxtune.data.order import Order, Turn
from jaxtune.data.packing import Lines, one_each, packed
from jaxtune.data.sources import Source
from jaxtune.data.survey import Survey
from jaxtune.display.errors import UserError

COUNTED = 20_000  # steps whose shapes are counted; in a longer run, the largest shape is added

Shape = tuple[int, int, int]  # T tokens of a line, K scored positions, I pictures; 0 without any


@dataclass(frozen=True)
class Outlook:
    """What the batches of some steps will be like, known before any is made."""

    shapes: Counter[Shape]  # number of steps with each shape
    largest: tuple[Shape, ...]  # shapes that no other one covers in all sizes
    padding: float  # share of the positions that are padding


@dataclass(frozen=True, eq=False)
class Step:
    """Batch of one step."""

    number: int  # from 0, over all epochs
    epoch: int
    batch: Batch  # share of this process: [A, B / processes, …]
    places: list[str]  # places of the rows in the share, line after line
    examples: int  # rows of the step, over all processes
    tokens: int  # their tokens, without padding
    scored: int  # their scored tokens


class Loader:
    """Iterator over the batches of a run, of `accumulate` micro-batches of `batch` lines each.

    Every row comes once per epoch; the last step of an epoch is filled up with lines of weight 0.
    All processes take the same steps in the same shapes. Each reads its lines of every micro-batch,
    and together these are the same batch for any number of processes. Pictures are decoded while
    earlier steps run.

    Args:
      source: Rows to read.
      encoder: Makes examples of rows.
      survey: Rows that can be used, with their lengths.
      batch: Lines per micro-batch, over all processes.
      accumulate: Micro-batches per step.
      packing: Packs several rows into a line, instead of one row per line.
      buckets: Ascending lengths that lines are padded to; empty takes those of `sizes`.
      seed: Seed of packing and shuffling; None keeps the rows in order.
      epochs: Number of epochs; None never ends.
      weighting: Weights of scored tokens, as in `collate`.
      augment: Random changes of pictures, as in `images.read`; what they do depends only on
        `augment_seed`, epoch, row and picture.
      augment_seed: Seed of the augmentation.
      process: Index of this process, and the number of processes.
      workers: Threads that prepare batches.
      ahead: Maximum number of steps prepared in advance.
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
            raise UserError(
                f"a batch of {batch} lines cannot be split evenly among {count} processes"
            )
        self._source, self._encoder = source, encoder
        self._rows, self._checksums = survey.rows, survey.checksums
        self._accumulate, self._weighting = accumulate, weighting
        self._augment, self._augment_seed = augment, augment_seed
        self.lines = _lines(survey, encoder.max_length, packing, seed)
        self._pictures = _of_lines(survey.pictures, self.lines)
        self._decoders = ThreadPoolExecutor(os.cpu_count())  # threads start when there is work
        # Lines of this process in a step: the same positions of each micro-batch.
        slots = np.arange(accumulate * batch).reshape(accumulate, count, -1)
        self._slots: list[int] = slots[:, index].ravel().tolist()
        longest = encoder.max_length
        fixed = encoder.placeholders(min(survey.pictures.tolist(), default=0))
        self._lengths = (longest,) if packing else tuple(buckets) or sizes(longest, fixed=fixed)
        self._scored = sizes(longest, smallest=8)
        self._order = Order(
            len(self.lines),
            accumulate * batch,
            self._made,
            seed=seed,
            epochs=epochs,
            workers=workers,
            ahead=ahead,
        )
        self._identity = {
            "contents": _checksum(self.lines),
            "rows": zlib.crc32(survey.checksums.tobytes()),
            "files": source.files,
        }
        self.steps, self.steps_per_epoch = self._order.steps, self._order.steps_per_epoch

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Step:
        return next(self._order)

    def state(self) -> dict[str, Any]:
        """Returns the position and what the data is known by; the same in all processes."""
        return {**self._order.state(), **self._identity}

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a state, which may come from another number of processes.

        Raises DataError if the rows, or the settings that make examples of them, have changed.
        """
        known = {"rows": self._identity["rows"], **state}  # states of old runs lack it
        if any(known[name] != self._identity[name] for name in ("contents", "rows")):
            raise DataError(_changed(state.get("files"), self._identity["files"]))
        self._order.restore(state)

    @property
    def identity(self) -> list[int]:
        """Checksums of the examples and of how they are put into lines."""
        return [self._identity["contents"], self._identity["rows"]]

    @property
    def files(self) -> list[About]:
        """The files that the rows come from, as JSON-compatible values."""
        return self._identity["files"]

    def check_files(self, before: Sequence[About]) -> None:
        """Raises DataError if one of the files is among those of an earlier start and changed."""
        known = {each["name"]: each for each in before}
        now = [each for each in self.files if each["name"] in known]
        now = [each for each in now if known[each["name"]]["contents"] != each["contents"]]
        if found := changes([known[each["name"]] for each in now], now):
            raise DataError(_refusal("the held-out rows", found))

    def outlook(self, start: int, stop: int) -> "Outlook":
        """Returns what the batches of the steps from `start` to `stop` will be like.

        Of more than `COUNTED` steps, only that many are counted, and the largest shape that any
        step may have is added to the largest ones.
        """
        counted, shapes, tokens = range(start, min(stop, start + COUNTED)), Counter(), 0
        for step in counted:
            items = self._order.items(step)
            shapes[self._shape(items)] += 1
            tokens += int(self.lines.lengths[items].sum())
        bound = [self._shape(slice(None))] if counted.stop < stop else []
        whole = sum(count * shape[0] for shape, count in shapes.items()) * self._order.each
        return Outlook(shapes, _largest([*shapes, *bound]), 1 - tokens / whole if whole else 0.0)

    def blank(self, shape: Shape) -> Batch:
        """Returns this process's share of a batch of padding, [A, B / processes, …]."""
        length, scored, pictures = shape
        batch = self._collated([], (length, scored))
        if wanted := self._encoder.pictures:
            size = (len(self._slots), pictures, wanted.size, wanted.size, 3)
            batch = batch.replace(images=np.zeros(size, np.float32))
        return split(batch, self._accumulate)

    def close(self) -> None:
        """Stops the threads that prepare steps and decode pictures; steps prepared are dropped."""
        self._order.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _made(self, turn: Turn) -> Step:
        """Makes the batch of a step, in the shape that the lines of all processes need."""
        chosen = [
            self.lines[turn.items[slot]] if slot < len(turn.items) else [] for slot in self._slots
        ]
        examples = [[self._example(row) for row in line] for line in chosen]
        chosen = [[int(self._rows[row]) for row in line] for line in chosen]
        *sizes, pictures = self._shape(turn.items)
        batch = self._collated(examples, sizes)
        batch = batch.replace(images=self._images(turn, chosen, examples, pictures))
        return Step(
            number=turn.step,
            epoch=turn.epoch,
            batch=split(batch, self._accumulate),
            places=[example.place for line in examples for example in line],
            examples=sum(len(self.lines[item]) for item in turn.items),
            tokens=int(self.lines.lengths[turn.items].sum()),
            scored=int(self.lines.scored[turn.items].sum()),
        )

    def _shape(self, items: list[int] | slice) -> Shape:
        """Returns the shape of a batch of lines, which all processes share."""
        lines, pictures = self.lines, 0
        if self._encoder.pictures:
            pictures = 1 << (int(self._pictures[items].max()) - 1).bit_length()  # few shapes
        return (
            fitting(int(lines.lengths[items].max()), self._lengths),
            fitting(int(lines.scored[items].max()), self._scored),
            pictures,
        )

    def _collated(self, examples: Sequence[Sequence[Example]], sizes: Sequence[int]) -> Batch:
        """Collates lines of this process into a batch of `sizes`, which are T and K."""
        pad = self._encoder.tokenizer.pad
        return collate(
            examples,
            shape=(len(self._slots), *sizes),
            pad=0 if pad is None else pad,
            weighting=self._weighting,
            full_prefix=self._encoder.full_prefix,
        )

    def _example(self, surveyed: int) -> Example:
        """Makes an example of a row by its index in the survey, and compares it with that."""
        row = int(self._rows[surveyed])
        place = self._source.place(row)
        try:
            example = self._encoder(self._source[row], place)
        except RowError:
            self._source.check()  # an error of a row that was good is one of a changed file
            raise
        if example.checksum != self._checksums[surveyed]:
            self._source.check()
            raise DataError(
                f"{place}: the row{' or a picture of it' if example.images else ''} changed after "
                "all rows were read; restore it, and run the same command again"
            )
        return example

    def _images(
        self,
        turn: Turn,
        rows: Sequence[Sequence[int]],
        lines: Sequence[Sequence[Example]],
        depth: int,
    ) -> np.ndarray | None:  # float32[lines, depth, S, S, 3]
        """Returns the pictures of a step's lines, or None."""
        wanted = self._encoder.pictures
        if wanted is None:
            return None
        found = np.zeros((len(lines), depth, wanted.size, wanted.size, 3), np.float32)
        work = [
            (number, example, (self._augment_seed, turn.epoch, row, picture))
            for number, line in enumerate(zip(lines, rows, strict=True))
            for example, row in zip(*line, strict=True)
            for picture in range(len(example.images))
        ]
        filled = [0] * len(lines)
        for (line, *_), pixels in zip(work, self._decoders.map(self._read, work), strict=True):
            found[line, filled[line]] = pixels
            filled[line] += 1
        return found

    def _read(self, work: tuple[int, Example, tuple[int, ...]]) -> np.ndarray:
        """Reads one picture of an example as float32[S, S, 3]."""
        _, example, key = work
        size = self._encoder.pictures.size
        return images.read(example.images[key[-1]], size, example.place, self._augment, key)


def _lines(survey: Survey, limit: int, packing: bool, seed: int | None) -> Lines:
    if packing:
        return packed(survey.lengths, survey.scored, limit, seed=seed)
    return one_each(survey.lengths, survey.scored)


def _largest(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Returns the shapes that no other one covers in all sizes, in descending order."""
    kept: list[Shape] = []
    for shape in sorted(set(shapes), reverse=True):
        if not any(all(map(ge, other, shape)) for other in kept):
            kept.append(shape)
    return tuple(kept)


def _of_lines(counts: np.ndarray, lines: Lines) -> np.ndarray:  # int32[N] -> int64[L]
    """Returns the sum of counts over the rows of each line."""
    sums = np.cumsum(counts[lines.rows], dtype=np.int64)[lines.ends - 1]
    return np.diff(sums, prepend=0)


def _changed(before: Sequence[About] | None, now: Sequence[About]) -> str:
    """Returns the error message of a resume with other rows.

    `before` are the files that the checkpoint knows, or None if it knows none.
    """
    if before is not None and not (found := changes(before, now)):
        return (
            "cannot resume, because the rows of data.source give other examples than before, "
            "although the files are the same: a setting, the tokenizer or the task changed. "
            "Restore it, or name another --workdir for a new run"
        )
    return _refusal("the rows of data.source", [] if before is None else found)


def _refusal(rows: str, found: Sequence[str]) -> str:
    return "\n".join(
        [
            f"cannot resume, because {rows} changed after the checkpoint was saved",
            *(f"  {line}" for line in found),
            "Restore the files, or name another --workdir for a new run",
        ]
    )


def _checksum(lines: Lines) -> int:
    """Returns a checksum of the rows and their lengths."""
    arrays = (lines.rows, lines.ends, lines.lengths, lines.scored)
    return zlib.crc32(b"".join(array.astype(np.int64).tobytes() for array in arrays))
