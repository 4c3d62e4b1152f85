"""`export`: writes a run's adapter or merged model, and verifies it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from jaxtune.cli.commands import UsageError, config_and_place, configured

DTYPES = ("float16", "bfloat16", "float32")
INTO = ("original", "dequantised")


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(parser, "[--merged DTYPE] [--to DIR | FILE.npz] [--step N] [--verify=reference]")
    parser.add_argument(
        "--merged",
        choices=DTYPES,
        help="the whole model with the adapter in it (default: the adapter alone, or the whole "
        "model where whole weights were tuned)",
    )
    parser.add_argument(
        "--into", choices=INTO, help="what a quantised base is merged into (default: original)"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="PLACE",
        help="a directory, or a file .npz for PaliGemma (default: below the run's export)",
    )
    parser.add_argument(
        "--step", default="best", metavar="N", help="best (the default), last, or a checkpoint's"
    )
    parser.add_argument(
        "--adapter", metavar="DIR", help="merge this one, a directory or Hub repository"
    )
    parser.add_argument(
        "--verify",
        choices=("here", "reference"),
        default="here",
        help="reference: compare with transformers and PEFT, too, which must be installed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Writes the export, loads it again, and compares it with the model in memory."""
    if options.adapter and not (options.merged and options.to):
        raise UsageError("--adapter is an adapter already: give --merged DTYPE and --to PLACE")
    if options.adapter and options.step != "best":
        raise UsageError("--step names a checkpoint of the run, and --adapter is of none")
    if options.into and not options.merged:
        raise UsageError("--into says what an adapter is merged into: give --merged DTYPE")
    config, workdir = config_and_place(options)
    from jaxtune.export.write import export

    found = export(
        config,
        workdir.expanduser(),
        merged=options.merged,
        into=options.into,
        to=options.to and options.to.expanduser(),
        step=options.step,
        adapter=options.adapter,
        outside=options.verify == "reference",
        overwrite=options.overwrite,
    )
    found.check()
    return 0
