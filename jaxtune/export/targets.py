"""Where an export lies under a run's directory, and what may stand in its way."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtune.checkpoint.formats.writing import publish, refuse_existing
from jaxtune.checkpoint.peft.adapter_config import CONFIG_NAME
from jaxtune.checkpoint.peft.load_adapter import REPORT
from jaxtune.checkpoint.save import NPZ
from jaxtune.export import card


@dataclass(frozen=True)
class Wanted:
    """What is to be written, and where."""

    target: Path
    merged: bool = False  # the whole model, not the adapter alone
    dtype: str = "float32"
    into: str | None = None  # what stands in for quantised weights
    overwrite: bool = False
    outside: bool = False  # compared with transformers and PEFT, too
    there: bool = False  # it is written already, and to be verified anew

    @property
    def mark(self) -> str:
        """The file that a directory of this kind is told by."""
        return "config.json" if self.merged else CONFIG_NAME


def default_name(whole: bool, base: str | Path, *details: str | None) -> str:
    """The name under a run's `export`: train's own has no details, others say what they are."""
    parts = ["merged" if whole else "adapter", *filter(None, details)]
    return "-".join(parts) + (NPZ if whole and Path(base).suffix == NPZ else "")


def beside(target: Path, state: str) -> Path:
    """`adapter.failed`, `merged.failed.npz`."""
    if target.suffix == NPZ:
        return target.with_name(f"{target.stem}.{state}{NPZ}")
    return target.with_name(f"{target.name}.{state}")


def free_name(target: Path) -> Path:
    """A name that says it failed, and is nobody's yet."""
    found, number = beside(target, "failed"), 1
    while found.exists():
        number += 1
        found = beside(target, f"failed-{number}")
    return found


def report_file(path: Path) -> Path:
    """In a directory, or beside a file."""
    return path.with_name(f"{path.stem}.{REPORT}") if path.suffix == NPZ else path / REPORT


def give_name(staged: Path, final: Path, wanted: Wanted) -> None:
    """Give what was written its final name, and the report of a file its own."""
    card.carry(final, staged)
    publish(staged, final, wanted.overwrite and final == wanted.target, wanted.mark)
    if final.suffix == NPZ:
        report_file(staged).replace(report_file(final))


def refuse_what_is_there(wanted: Wanted) -> None:
    """Stop before any work where something is in the way."""
    target = wanted.target
    if wanted.there:
        return
    if target.exists() and not wanted.overwrite:
        raise ValueError(
            f"{target} is there already: --overwrite replaces it, --to names another place"
        )
    if target.suffix != NPZ:
        refuse_existing(target, wanted.overwrite, wanted.mark)


def is_there(wanted: Wanted, step: int | None) -> bool:
    """Whether what is wanted stands there already, as its report says."""
    try:
        report = json.loads(report_file(wanted.target).read_bytes())
    except (OSError, ValueError):
        return False
    dtype = wanted.dtype in (report.get("dtype"), "float32")
    return dtype and (report.get("step"), report.get("into")) == (step, wanted.into)
