"""Rows of data, the encoder that makes examples of them, and the batches of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtune
from jaxtune import tasks
from jaxtune.checkpoint.hub import COMPANIONS
from jaxtune.checkpoint.load import read_config
from jaxtune.config.run_sections import Eval
from jaxtune.config.schema import counted
from jaxtune.config.training_sections import Batch, Data
from jaxtune.data.errors import DataError
from jaxtune.data.examples import Chat, Form, RowEncoder, Template, Written
from jaxtune.data.images import Pictures
from jaxtune.data.loader import Loader
from jaxtune.data.sources import Source, first, open_source, set_apart
from jaxtune.data.survey import Survey, survey
from jaxtune.data.survey_cache import cached
from jaxtune.data.textfiles import stamp
from jaxtune.data.tokenizer import Tokenizer, beside
from jaxtune.display.progress import Progress


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows that were read once, and the encoder that makes examples of them."""

    source: Source
    encoder: RowEncoder
    survey: Survey


def open_tokenizer(data: Data, checkpoint: Path, today: str) -> Tokenizer:
    """The config's tokenizer, or that of the checkpoint in a directory or beside an .npz file."""
    place = data.tokenizer or (beside(checkpoint) if checkpoint.is_file() else checkpoint)
    return Tokenizer.open(place, today=today)


def pictures_of(checkpoint: Path) -> Pictures | None:
    """What a checkpoint wants of pictures, if it sees any."""
    wants = read_config(checkpoint)[2].pictures
    return wants and Pictures(wants.side, wants.tokens, wants.token)


def row_encoder(
    data: Data, max_length: int, tokenizer: Tokenizer, pictures: Pictures | None, model: str
) -> RowEncoder:
    """How a row becomes tokens.

    `pictures` is what the model wants of these, if it sees any, and `model` its name in errors.
    """
    if data.augment and pictures is None:
        raise ValueError(f"data.augment changes pictures, and {model} sees none")
    return RowEncoder(
        tokenizer,
        _form(data),
        max_length,
        too_long=data.too_long,
        full_prefix=pictures is not None,
        pictures=pictures if data.image else None,
        image=data.image,
        image_root=data.image_root,
    )


def open_sources(data: Data, held_out: Eval) -> tuple[Source, Source | None]:
    """The rows to train on, and those to evaluate on, if there are any."""
    train = _opened(data, data.source, data.split, data.rows)
    if held_out.source or held_out.split:
        split = held_out.split or data.split
        return train, _opened(data, held_out.source or data.source, split, held_out.rows)
    if not held_out.holdout:
        return train, None
    train, apart = set_apart(train, counted(held_out.holdout, len(train)))
    return train, first(apart, held_out.rows)


def surveyed(
    data: Data,
    max_length: int,
    source: Source,
    encoder: RowEncoder,
    progress: Progress,
    cache: tuple[Path, list] | None = None,
) -> Rows:
    """Read all rows once: what is wrong with any comes up before the run begins.

    `cache` is the file where what was found stays for the next time, and what it depends on
    besides the rows and these settings.
    """
    whole = len(source)

    def read() -> Survey:
        return survey(
            source,
            encoder,
            malformed=data.bad_rows,
            workers=max(1, data.workers),
            progress=lambda count: progress.draw(f"reading rows: {count:,} of {whole:,}"),
        )

    if cache is None:
        return Rows(source, encoder, read())
    file, more = cache
    pictures = encoder.pictures and vars(encoder.pictures)
    settings = [vars(data), max_length, jaxtune.__version__, pictures, more]
    return Rows(source, encoder, cached(file, [source.identity, settings], read))


def identity(data: Data, checkpoint: Path, today: str) -> list:
    """What the making of examples depends on, beside rows and settings."""
    place = Path(data.tokenizer).expanduser() if data.tokenizer else checkpoint
    task = [Path(tasks.find(data.task).__file__)] if data.task else []
    companions = (file for pattern in COMPANIONS for file in sorted(place.glob(pattern)))
    files = [place] if place.is_file() else filter(Path.is_file, companions)
    return [today, *map(stamp, [*files, *task])]


def loader(batch: Batch, rows: Rows, workers: int, **more: Any) -> Loader:
    """Batches of rows, of the size of a micro-batch."""
    return Loader(
        rows.source,
        rows.encoder,
        rows.survey,
        batch=batch.rows // batch.accumulate,
        packing=batch.packing,
        buckets=batch.buckets,
        weighting=batch.weighting,
        workers=workers,
        **more,
    )


def _opened(data: Data, source: Any, split: str, limit: int | None) -> Source:
    found = open_source(
        source, split=split, subset=data.subset or None, revision=data.revision or None
    )
    if not len(found):
        raise DataError(f"{source}: holds no rows")
    return first(found, limit)


def _form(data: Data) -> Form:
    end = data.end or None
    if data.messages:
        return Chat(data.messages, turns=data.turns)
    if data.task:
        task = tasks.find(data.task)
        renamed = dict(data.columns)
        for name in renamed.keys() - task.COLUMNS.keys():
            raise ValueError(
                f"data.columns names {name!r}, which the task {data.task!r} does not read: "
                f"expected some of {', '.join(task.COLUMNS)}"
            )
        return Written(task.prefix, task.suffix, end, data.columns)
    return Template(data.prefix, data.suffix, end)
