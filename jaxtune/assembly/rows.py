"""Opens the data of a config: its sources, their encoder into examples, and loaders of batches."""

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jaxtune
from jaxtune import tasks
from jaxtune.checkpoint.hub import COMPANIONS
from jaxtune.checkpoint.load import read_config
from jaxtune.checkpoint.sources import locate_tokenizer
from jaxtune.config.run_sections import Eval
from jaxtune.config.schema import counted
from jaxtune.config.training_sections import Batch, Data
from jaxtune.data.datafile import stamp
from jaxtune.data.errors import DataError, RowError
from jaxtune.data.examples import Chat, Form, RowEncoder, Template, Written
from jaxtune.data.images import Pictures
from jaxtune.data.known_templates import KNOWN, check_fits, template_file, template_text
from jaxtune.data.loader import Loader
from jaxtune.data.messages import foreign
from jaxtune.data.side_files import STANDARD
from jaxtune.data.sources import Source, first, open_source, set_apart
from jaxtune.data.survey import Survey, survey
from jaxtune.data.survey_cache import cached
from jaxtune.data.tokenizer import Tokenizer, beside
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress
from jaxtune.files.store import is_remote
from jaxtune.models.paligemma import Model


@dataclass(frozen=True, eq=False)
class Rows:
    """A source of rows with its survey, and the encoder of rows into examples."""

    source: Source
    encoder: RowEncoder
    survey: Survey


def tokenizer_place(data: Data, checkpoint: Path) -> Path:
    """Returns the directory or file of the tokenizer: the config's, or else the checkpoint's own.

    The latter is in the checkpoint's directory, or beside its .npz file.
    """
    if is_remote(data.tokenizer):
        return locate_tokenizer(data.tokenizer)
    if data.tokenizer:
        return Path(data.tokenizer).expanduser()
    return beside(checkpoint) if checkpoint.is_file() else checkpoint


def open_tokenizer(data: Data, checkpoint: Path, today: str) -> Tokenizer:
    """Opens the config's tokenizer, or that of the checkpoint.

    It has the config's chat template, if there is one. `today` is the date that is passed to chat
    templates.
    """
    place = tokenizer_place(data, checkpoint)
    template = template_text(data.chat_template) if data.chat_template else None
    found = Tokenizer.open(place, template=template, today=today)
    eos = None if found.eos is None else found.piece(found.eos)
    check_fits(data.chat_template, found.specials, eos)
    return found


def pictures_of(checkpoint: Path) -> Pictures | None:
    """Returns the picture size and tokens of a checkpoint, or None if it takes no pictures."""
    return pictures_for(read_config(checkpoint)[2])


def pictures_for(model: Model) -> Pictures | None:
    """Returns the picture size and tokens of a model, or None if it takes no pictures."""
    wants = model.pictures
    return wants and Pictures(wants.side, wants.tokens, wants.token)


def row_encoder(
    data: Data, max_length: int, tokenizer: Tokenizer, pictures: Pictures | None, model: str
) -> RowEncoder:
    """Returns the encoder of rows into examples.

    Args:
      data: Settings of the data.
      max_length: Maximum number of tokens of an example.
      tokenizer: The tokenizer.
      pictures: Picture size and tokens of the model; None if it takes no pictures.
      model: Name of the model in error messages.

    Returns:
      The encoder. With `pictures`, a prompt's tokens attend to each other in both directions.
    """
    if data.augment and pictures is None:
        raise UserError(f"data.augment is set, but {model} takes no pictures")
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
    """Opens the training rows and the held-out rows; the latter are None if none are configured."""
    train = _opened(data, data.source, data.split, data.rows)
    if held_out.source or held_out.split:
        split = held_out.split or data.split
        return train, _opened(data, held_out.source or data.source, split, held_out.rows)
    if not held_out.holdout:
        return train, None
    train, apart = set_apart(train, counted(held_out.holdout, len(train)))
    return train, first(apart, held_out.rows)


def notes(data: Data, source: Source) -> list[str]:
    """Returns lines on what was detected in a source: its files' format, and that of messages."""
    found = list(source.notes)
    if data.messages:
        with contextlib.suppress(RowError):  # the survey reports it
            messages = source[0].get(data.messages)
            if isinstance(messages, list) and any(map(foreign, messages)):
                found.append(
                    "data.messages: the messages have 'from' and 'value', as in ShareGPT; they "
                    "are read as role and content"
                )
    return found


def surveyed(
    data: Data,
    max_length: int,
    source: Source,
    encoder: RowEncoder,
    progress: Progress,
    cache: tuple[Path, list] | None = None,
) -> Rows:
    """Reads all rows once, so that errors in any of them are reported before the run begins.

    Args:
      data: Settings of the data.
      max_length: Maximum number of tokens of an example.
      source: The rows.
      encoder: Encodes rows into examples.
      progress: Display for the count of rows.
      cache: A file that keeps the survey for the next time, and the inputs that the survey depends
        on besides the rows and these settings. None: nothing is kept.

    Returns:
      The rows with their survey.
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
    settings = [asdict(data), max_length, jaxtune.__version__, pictures, more]
    return Rows(source, encoder, cached(file, [source.identity, settings], read))


def tokenizer_files(data: Data, checkpoint: Path) -> list[Path]:
    """Returns the files that decide how text becomes tokens, a chat template's included."""
    place = tokenizer_place(data, checkpoint)
    folder = place.parent if place.name in STANDARD else place  # its settings lie beside it
    own = data.chat_template and data.chat_template not in KNOWN
    template = [template_file(data.chat_template)] if own else []
    if folder.is_file():
        return [folder, *template]
    found = (file for pattern in COMPANIONS for file in sorted(folder.glob(pattern)))
    return [*filter(Path.is_file, found), *template]


def identity(data: Data, checkpoint: Path, today: str) -> list:
    """Returns what examples depend on besides rows and settings.

    These are the date, and the files of the tokenizer, the chat template and the task.
    """
    task = [Path(tasks.find(data.task).__file__)] if data.task else []
    return [today, *map(stamp, [*tokenizer_files(data, checkpoint), *task])]


def loader(batch: Batch, rows: Rows, workers: int, **more: Any) -> Loader:
    """Returns a loader of rows in micro-batches.

    Args:
      batch: Settings of the batch; a micro-batch has `rows / accumulate` lines.
      rows: The rows and their encoder.
      workers: Number of threads that prepare batches.
      **more: Further arguments of `Loader`.

    Returns:
      The loader.
    """
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
        raise DataError(f"{source}: no rows")
    return first(found, limit)


def _form(data: Data) -> Form:
    end = data.end or None
    if data.messages:
        chat = data.chat
        return Chat(data.messages, data.turns, chat.tools or None, dict(chat.options))
    if data.task:
        task = tasks.find(data.task)
        renamed = dict(data.columns)
        for name in renamed.keys() - task.COLUMNS.keys():
            raise UserError(
                f"data.columns names {name!r}, which the task {data.task!r} does not read: "
                f"expected some of {', '.join(task.COLUMNS)}"
            )
        return Written(task.prefix, task.suffix, end, data.columns)
    return Template(data.prefix, data.suffix, end)
