"""Names and paths of exports, and checks for existing files at them."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtune.checkpoint.dtypes import AUTO
from jaxtune.checkpoint.formats.writing import publish, refuse_existing
from jaxtune.checkpoint.peft.adapter_config import CONFIG_NAME
from jaxtune.checkpoint.peft.load_adapter import REPORT
from jaxtune.checkpoint.save import NPZ
from jaxtune.export import card


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


def free_name(target: Path) -> Path:
    """Returns an unused sibling path that says that the export failed."""
    found, number = beside(target, "failed"), 1
    while found.exists():
        number += 1
        found = beside(target, f"failed-{number}")
    return found


def report_file(path: Path) -> Path:
    """Returns the path of the report: in an exported directory, or beside an .npz file."""
    return path.with_name(f"{path.stem}.{REPORT}") if path.suffix == NPZ else path / REPORT


def give_name(staged: Path, final: Path, wanted: Wanted) -> None:
    """Moves an export to its final path, with its report if that is a separate file.

    An edited card of the directory that is replaced is kept.
    """
    card.carry(final, staged)
    publish(staged, final, wanted.overwrite and final == wanted.target, wanted.mark)
    if final.suffix == NPZ:
        report_file(staged).replace(report_file(final))


def refuse_what_is_there(wanted: Wanted) -> None:
    """Raises, before any work, if the target exists and may not be replaced."""
    target = wanted.target
    if wanted.there:
        return
    if target.exists() and not wanted.overwrite:
        raise ValueError(
            f"{target} already exists: --overwrite replaces it, --to chooses another path"
        )
    if target.suffix != NPZ:
        refuse_existing(target, wanted.overwrite, wanted.mark)


def is_there(wanted: Wanted, step: int | None) -> bool:
    """Returns whether the target exists with the same step, dtype and `into`, by its report."""
    try:
        report = json.loads(report_file(wanted.target).read_bytes())
    except (OSError, ValueError):
        return False
    settings = (step, wanted.into, wanted.written_dtype)
    return settings == tuple(map(report.get, ("step", "into", "dtype")))
