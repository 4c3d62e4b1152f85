"""Names and paths of exports, and checks for existing files at them."""

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from jaxtune.checkpoint.dtypes import AUTO
from jaxtune.checkpoint.formats.writing import publish, refuse_existing
from jaxtune.checkpoint.hub import WANTED
from jaxtune.checkpoint.peft.adapter_config import CONFIG_NAME
from jaxtune.checkpoint.report import REPORT, read_report, report_file
from jaxtune.checkpoint.save import NPZ
from jaxtune.display.columns import few
from jaxtune.display.errors import UserError
from jaxtune.export import card
from jaxtune.export.card_facts import CURVE, README, file_hash

WRITTEN = (*WANTED, REPORT)  # patterns of the files that an export writes before its card


@dataclass(frozen=True)
class Wanted:
    """Settings of an export: what to write, and where."""

    target: Path
    merged: bool = False  # the whole model instead of the adapter alone
    dtype: str = AUTO  # of a merged model
    into: str | None = None  # what replaces quantised weights, as in `merging.merged`
    overwrite: bool = False
    outside: bool = False  # compare with transformers and PEFT too
    there: bool = False  # it exists already and is only verified again

    @property
    def mark(self) -> str:
        """Name of the file that identifies a directory of this kind."""
        return "config.json" if self.merged else CONFIG_NAME

    @property
    def written_dtype(self) -> str:
        """The dtype that the report names: adapters are always written in float32."""
        return self.dtype if self.merged else "float32"


def default_name(whole: bool, base: str | Path, step: int | None = None) -> str:
    """Returns the default name of an export: `adapter`, `merged`, or with a step `adapter-step-9`.

    A merged model whose base is an .npz file is an .npz file too.
    """
    name = "merged" if whole else "adapter"
    named = name if step is None else f"{name}-step-{step}"
    return named + (NPZ if whole and Path(base).suffix == NPZ else "")


def in_dtype(dtype: str) -> str:
    """Returns a phrase that names the dtype of a merged model in a message."""
    return "in the dtype of the base" if dtype == AUTO else f"in {dtype}"


def beside(target: Path, state: str) -> Path:
    """Returns a sibling path with a state in its name: `adapter.failed`, `merged.failed.npz`."""
    if target.suffix == NPZ:
        return target.with_name(f"{target.stem}.{state}{NPZ}")
    return target.with_name(f"{target.name}.{state}")


def free_name(target: Path, state: str) -> Path:
    """Returns an unused sibling path with a state, and if need be a number, in its name."""
    found, number = beside(target, state), 1
    while found.exists() or report_file(found).exists():
        number += 1
        found = beside(target, f"{state}-{number}")
    return found


def staging(target: Path) -> Path:
    """Returns the path under which an export is written before it is verified.

    It may hold what a killed process left; if it holds anything else, another name is taken.
    """
    usual = beside(target, "unverified")
    if usual.is_dir():
        strange = [each for each in usual.iterdir() if not _written(each)]
        return free_name(target, "unverified") if strange else usual
    return free_name(target, "unverified") if usual.exists() and usual.suffix != NPZ else usual


def _written(file: Path) -> bool:
    return file.is_file() and any(fnmatch(file.name, pattern) for pattern in WRITTEN)


def foreign(target: Path) -> list[str]:
    """Returns the names of files at the path of an export that no export has written.

    By its report, an export knows its files; without a report, all that is there is foreign. A
    README.md that was edited is not, as `give_name` keeps it.
    """
    if not target.is_dir():
        known = read_report(target).get("files", {}) if target.suffix == NPZ else {}
        strange = [target] if target.exists() and target.name not in known else []
        drawing = target.with_suffix(".svg")  # no card refers to it
        lone = target.suffix == NPZ and drawing.exists() and not card.card_file(target).exists()
        return [file.name for file in (*strange, *([drawing] if lone else []))]
    found = sorted(each.name for each in target.iterdir())
    report = read_report(target)
    ours = {*report["files"], REPORT, README, CURVE} if report else set()
    return [name for name in found if name not in ours or (target / name).is_dir()]


def refuse_foreign(target: Path, otherwise: str) -> None:
    """Raises if files that no export has written are where an export will be written.

    Args:
      target: Path of the export.
      otherwise: What to do instead of moving them away, for the message.
    """
    if names := foreign(target):
        where = target if target.is_dir() else target.parent
        raise UserError(
            f"{where} contains {few(names, len(names))}, which no export has written and which an "
            f"export to {target} would replace: move it away, or {otherwise}"
        )


def give_name(staged: Path, final: Path, wanted: Wanted) -> Path | None:
    """Moves an export to its final path, with its report if that is a separate file.

    An edited card of the directory that is replaced is kept. If anything else in it is not as an
    export has written it, the directory is kept under another name, which is returned.
    """
    card.carry(final, staged)
    kept = None
    if final.exists() and final != staged and _changed(final):
        kept = free_name(final, "replaced")
        _move(final, kept)
    publish(staged, final, wanted.overwrite and final == wanted.target, wanted.mark)
    if final.suffix == NPZ:
        report_file(staged).replace(report_file(final))
    return kept


def _changed(target: Path) -> bool:
    """Returns whether a path holds files that no export has written, or has written otherwise."""
    try:
        if foreign(target):
            return True
        known = read_report(target)["files"]
    except (ValueError, KeyError):
        return target.is_file() or any(target.iterdir())
    files = {name: target if target.is_file() else target / name for name in known}
    return any(file_hash(file) != known[name]["sha256"] for name, file in files.items())


def _move(old: Path, new: Path) -> None:
    if old.suffix == NPZ and report_file(old).exists():
        report_file(old).replace(report_file(new))
    old.replace(new)


def refuse_what_is_there(wanted: Wanted) -> None:
    """Raises, before any work, if the target exists and may not be replaced."""
    target = wanted.target
    if wanted.there:
        return
    if target.exists() and not wanted.overwrite:
        raise UserError(
            f"{target} already exists: --overwrite replaces it, --to chooses another path"
        )
    refuse_foreign(target, "choose another path with --to")
    if target.suffix != NPZ:
        refuse_existing(target, wanted.overwrite, wanted.mark)


def is_there(wanted: Wanted, step: int | None) -> bool:
    """Returns whether the target exists with the same step, dtype and `into`, by its report."""
    report = read_report(wanted.target)
    settings = {"step": step, "into": wanted.into, "dtype": wanted.written_dtype}
    return "tokenizer" in report and settings.items() <= report.items()
