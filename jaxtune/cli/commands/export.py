"""`export`: writes a run's adapter or merged model, and verifies it."""

from argparse import ArgumentParser, Namespace

from jaxtune.checkpoint.dtypes import AUTO, DTYPES
from jaxtune.cli import distributed
from jaxtune.cli.commands import UsageError, config_and_place, configured
from jaxtune.cli.options import filled, path

INTO = ("original", "dequantised")


def arguments(parser: ArgumentParser) -> None:
    """Adds the command's arguments to a parser."""
    configured(
        parser,
        "[--merged [DTYPE]] [--to DIR | FILE.npz] [--step N] [--verify=reference] "
        f"{distributed.USAGE}",
    )
    parser.add_argument(
        "--merged",
        nargs="?",
        const=AUTO,
        choices=(AUTO, *DTYPES),
        metavar="DTYPE",
        help="export the whole model, with the adapter merged in, as float16, bfloat16, float32 or "
        "auto, the dtype of the base (default: auto). Without --merged, the adapter alone is "
        "exported, or the whole model if the run has no adapter",
    )
    parser.add_argument(
        "--into", choices=INTO, help="weights of a quantised base to merge into (default: original)"
    )
    parser.add_argument(
        "--to",
        type=path,
        metavar="PATH",
        help="output directory, or .npz file for PaliGemma, as a path or a URL (default: in the "
        "run's export folder)",
    )
    parser.add_argument(
        "--step",
        default="best",
        metavar="N",
        help="checkpoint: best, last or a step number (default: best)",
    )
    parser.add_argument(
        "--adapter",
        type=filled,
        metavar="DIR",
        help="adapter to merge instead: a directory or Hub repository",
    )
    parser.add_argument(
        "--verify",
        choices=("here", "reference"),
        default="here",
        help="reference: also compare with transformers and PEFT, which must be installed",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing export")
    distributed.arguments(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Writes the export, loads it again, and compares it with the model in memory."""
    if options.adapter and not (options.merged and options.to):
        raise UsageError("--adapter can only be exported merged: add --merged and --to PATH")
    if options.adapter and options.step != "best":
        raise UsageError(
            "--step selects a checkpoint of the run: it cannot be combined with --adapter"
        )
    if options.into and not options.merged:
        raise UsageError("--into applies only to merged exports: add --merged")
    distributed.join(options)
    config, workdir = config_and_place(options, ("checkpoints", "export"))
    from jaxtune.export.outgoing import exported_to
    from jaxtune.export.write import export

    with exported_to(options.to, options.overwrite) as to:
        found = export(
            config,
            workdir,
            merged=options.merged,
            into=options.into,
            to=to,
            step=options.step,
            adapter=options.adapter,
            outside=options.verify == "reference",
            overwrite=options.overwrite,
        )
    found.check()
    return 0
