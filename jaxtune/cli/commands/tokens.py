"""`tokens`: compares tokenizers."""

import dataclasses
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from jaxtune.cli.commands import UsageError


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "tokenizers",
        nargs="+",
        metavar="TOKENIZER",
        help="a directory, a tokenizer file, or owner/name or owner/name@revision on the Hub",
    )
    parser.add_argument("--text", metavar="FILE", help="text file to count tokens in")
    parser.add_argument(
        "--up-to",
        type=int,
        default=999,
        metavar="N",
        help="encode the integers from 0 to N (default: 999)",
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="directory for tokens.json (default: runs/tokens)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Prints the table, and writes its numbers to tokens.json."""
    if options.up_to < 0:
        raise UsageError(f"--up-to {options.up_to}: expected 0 or more")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tokens need no accelerator
    from jaxtune.cli.tokens import report, table
    from jaxtune.files import write_json
    from jaxtune.workdir.directory import claim, refuse_foreign

    workdir = options.workdir or Path("runs/tokens")
    refuse_foreign(workdir)
    found = report(list(dict.fromkeys(options.tokenizers)), options.text, options.up_to)
    content = dataclasses.asdict(found)
    if options.json:
        print(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        print(table(found))
    file = workdir / "tokens.json"
    claim(workdir)
    write_json(file, content)
    print(f"\nwritten to {file}", file=sys.stderr if options.json else sys.stdout)
    return 0
