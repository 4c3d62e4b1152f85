"""Collects the rows of a config's first step, and shows them on the terminal and as a page."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.rows import Rows
from jaxtune.checkpoint.sources import locate_headers
from jaxtune.cli.preview import render as shown
from jaxtune.config.schema import Config
from jaxtune.data.batches import Batch
from jaxtune.display.progress import Progress, Quiet
from jaxtune.files import write_json, write_text
from jaxtune.files.fetched import known_as
from jaxtune.models import layout
from jaxtune.workdir.directory import claim


@dataclass(frozen=True)
class Preview:
    """The text for the terminal, and the files that were written."""

    text: str
    page: Path
    report: Path


def preview(
    config: Config,
    workdir: Path,
    rows: int = 4,
    *,
    colour: bool = False,
    progress: Progress | None = None,
) -> Preview:
    """Writes a preview of the first step and the counts of all rows; weights are not read.

    Args:
      config: Config whose rows are shown.
      workdir: Directory for preview.html, the whole first step, and preview.json, the counts.
      rows: Number of lines of the step in the text.
      colour: Colours the text for a terminal.
      progress: Where to report progress; by default, nowhere.

    Returns:
      The text and the paths of the files.
    """
    directory, _ = locate_headers(config.model.path)
    assembly = Assembly(config, directory, datetime.date.today().isoformat())
    tokenizer, encoder = assembly.tokenizer, assembly.encoder
    progress = progress or Quiet()
    train, held = (source and assembly.survey(source, progress) for source in assembly.sources)
    loader = assembly.training(train)
    step = next(loader)
    loader.close()
    report = {
        "train": _counts(train),
        "held_out": held and _counts(held),
        "steps": assembly.total_steps(loader),
        "steps_per_epoch": loader.steps_per_epoch,
        "first_step": step.places,
    }
    lines = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), step.batch)
    few = jax.tree.map(lambda leaf: leaf[:rows], lines)
    told, title = (
        (tokenizer, step.places, train.survey),
        f"Rows of {Path(known_as(workdir)).resolve().name}",
    )
    page, file = workdir / "preview.html", workdir / "preview.json"
    seen, pictures = _seen(lines), encoder.pictures
    claim(workdir)
    write_text(page, shown.page(lines, *told, pictures=pictures, seen=seen, title=title))
    write_json(file, report)
    return Preview(shown.text(few, *told, pictures=pictures, colour=colour), page, file)


def _seen(lines: Batch) -> Iterator[np.ndarray]:
    """Yields each line's attention mask in a layer without a window: bool[T, T], [query, key]."""
    given = (lines.positions, lines.segments, lines.valid, lines.causal)
    for row in range(len(lines.tokens)):
        own = [each if each is None else each[row : row + 1] for each in given]
        stand = layout.arrange(lines.tokens[row : row + 1].shape, *own)
        yield np.asarray(layout.mask(stand, stand, layout.EVERYTHING))[0]


def _counts(rows: Rows) -> dict[str, Any]:
    found = rows.survey
    return {
        "rows": len(found.rows),
        "tokens": found.tokens,
        "scored_tokens": found.scored_tokens,
        "longest": found.longest,
        "cut_rows": found.cut,
        "cut_tokens": found.cut_tokens,
        "too_long": found.too_long.count,
        "malformed": found.malformed.count,
        "left_out": [*found.malformed.first, *found.too_long.first],
    }
