"""`tokens`: compares tokenizers."""

import dataclasses
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from jaxtune.cli.commands import opened_workdir
from jaxtune.cli.options import filled, largest, path
from jaxtune.display.escapes import json_text, show


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "tokenizers",
        type=filled,
        nargs="+",
        metavar="TOKENIZER",
        help="a directory, a tokenizer file, or owner/name or owner/name@revision on the Hub",
    )
    parser.add_argument("--text", type=filled, metavar="FILE", help="text file to count tokens in")
    parser.add_argument(
        "--up-to",
        type=largest,
        default=999,
        metavar="N",
        help="encode the integers from 0 to N (default: 999)",
    )
    parser.add_argument(
        "--workdir",
        type=path,
        metavar="DIR",
        help="directory for tokens.json (default: runs/tokens)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the table, and writes its numbers to tokens.json."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tokens need no accelerator
    from jaxtune.cli.tokens import report, table
    from jaxtune.files import write_json
    from jaxtune.workdir.directory import claim

    options.workdir = opened_workdir(options.workdir or Path("runs/tokens"))
    found = report(list(dict.fromkeys(options.tokenizers)), options.text, options.up_to)
    content = dataclasses.asdict(found)
    if options.json:
        print(json_text(content))
    else:
        show(table(found))
    file = options.workdir / "tokens.json"
    claim(options.workdir)
    write_json(file, content)
    show(f"\nwritten to {file}", sys.stderr if options.json else sys.stdout)
    return 0
