"""`prepare`: converts a published dataset to the JSON lines that a task reads."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from jaxtune.cli.options import count, filled, path
from jaxtune.display.escapes import plural, show


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument("task", help="task that reads the data, such as totto")
    parser.add_argument(
        "source", type=filled, help="a file, a glob, a saved dataset, or owner/name on the Hub"
    )
    parser.add_argument("file", type=path, metavar="OUT.jsonl", help="file to write")
    parser.add_argument("--split", default="train", help="split of the dataset (default: train)")
    parser.add_argument("--revision", help="revision of a dataset on the Hub")
    parser.add_argument("--subset", help="configuration of a dataset on the Hub")
    parser.add_argument("--rows", type=count, metavar="N", help="read only the first N rows")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Writes the file, and prints how many rows it has and which were left out."""
    from jaxtune.cli.prepare import prepare
    from jaxtune.display.progress import Progress

    progress = Progress(sys.stderr)
    found = prepare(
        options.task,
        options.source,
        options.file,
        split=options.split,
        revision=options.revision,
        subset=options.subset,
        rows=options.rows,
        overwrite=options.overwrite,
        tell=lambda done, of: progress.draw(f"{done:,} of {of:,} rows"),
    )
    if progress.live:
        progress.say()
    for line in left_out(found.left_out.count, found.left_out.first):
        show(line)
    show(f"{plural(found.rows, 'row')} written to {found.file}")
    return 0


def left_out(total: int, first: Sequence[str]) -> list[str]:
    """Returns lines that report the rows left out, `total` of them; [] if there are none."""
    if not total:
        return []
    more = [f"  and {total - len(first):,} more"] if total > len(first) else []
    return [f"unusable rows left out: {total:,}", *(f"  {row}" for row in first), *more]
