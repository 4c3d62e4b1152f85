"""`push`: uploads a run's export to the Hugging Face Hub."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from jaxtune.cli.commands import UsageError
from jaxtune.cli.options import filled, path
from jaxtune.display.escapes import show
from jaxtune.files.fetched import local

MARKS = ("adapter_config.json", "config.json")  # a directory that may be pushed has one of them


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    parser.add_argument(
        "source", type=path, help="directory of an adapter or a model, or an .npz file"
    )
    parser.add_argument(
        "repo",
        type=filled,
        help="owner/name on the Hub, or a name in the account that HF_TOKEN belongs to",
    )
    parser.add_argument(
        "--public", action="store_true", help="create a public repository, or push to one"
    )
    parser.add_argument("--message", help="commit message (default: the name of the export)")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Uploads the export as one commit, and prints the address of that commit."""
    from jaxtune.checkpoint import hub

    source = checked(located(options.source))
    account = hub.account()
    repo = options.repo if "/" in options.repo else f"{account}/{options.repo}"
    hub.claim(repo, private=not options.public)
    url = hub.upload(source, repo, options.message or f"{source.name}, by jaxtune")
    show(f"pushed to {url}")
    return 0


def located(source: Path | str) -> Path:
    """Returns the local path of an export, which is downloaded if it is in an object store."""
    try:
        return local(source)
    except FileNotFoundError:
        raise UsageError(f"{source}: no such object or folder") from None


def checked(source: Path) -> Path:
    """Returns `source` if it is an export; other directories may hold private files."""
    if not source.exists():
        raise UsageError(f"{source}: no such file or directory")
    if source.is_dir() and not any((source / mark).is_file() for mark in MARKS):
        raise UsageError(
            f"{source} contains no {' or '.join(MARKS)}: expected an exported adapter or model, "
            "such as runs/x/export/adapter"
        )
    if source.is_file() and source.suffix != ".npz":
        raise UsageError(f"{source}: expected a directory or an .npz file")
    return source
