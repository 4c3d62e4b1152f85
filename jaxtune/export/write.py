"""Exports what a run tuned and verifies it: an adapter, or the whole model with it merged.

Files get their final name only after they were loaded afresh and matched the model in memory. Files
that fail are kept under a name that says so.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import jaxtune
from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.companions import TokenizerFiles
from jaxtune.checkpoint.dtypes import AUTO
from jaxtune.checkpoint.hub import PROCESSOR_FILES, TOKENIZER_FILES
from jaxtune.checkpoint.peft.save_adapter import save_adapter
from jaxtune.checkpoint.report import REPORT, report_file
from jaxtune.checkpoint.save import NPZ, save_merged
from jaxtune.config.load import resolved
from jaxtune.config.schema import Config
from jaxtune.display.errors import UserError
from jaxtune.display.progress import Progress, Quiet
from jaxtune.export import card, reference, verify
from jaxtune.export.card_facts import CURVE, README
from jaxtune.export.prove import (
    Check,
    check_adapter,
    check_merged,
    compare_outside,
    compute_of,
    rows,
    verify_files,
)
from jaxtune.export.targets import (
    Wanted,
    default_name,
    foreign,
    free_name,
    give_name,
    in_dtype,
    is_there,
    refuse_what_is_there,
    staging,
)
from jaxtune.export.tuned import Tuned, adapted, restored, run_checkpoints, step_of
from jaxtune.export.verify import Comparison, ComparisonRows, Same
from jaxtune.files import write_json
from jaxtune.workdir import agreement
from jaxtune.workdir.directory import begun, claim, locked_directory

EXPORTS = "export"  # subdirectory of the workdir with the exports, locked while one is written


class Unverified(UserError):
    """The written files do not match the tuned model."""


@dataclass(frozen=True)
class Exported:
    """An export and the report of its verification."""

    path: Path
    report: dict[str, Any]
    problem: str = ""  # why verification failed; empty if it passed

    def check(self) -> None:
        """Raises `Unverified` if verification failed."""
        if self.problem:
            raise Unverified(
                f"the written files do not match the model in memory: {self.problem}\n  they are "
                f"kept for inspection as {self.path}; nothing else was changed"
            )


def export(
    config: Config,
    workdir: Path,
    *,
    merged: str | None = None,  # dtype of a merged model
    into: str | None = None,
    to: Path | None = None,
    step: str = "best",
    adapter: str | None = None,
    outside: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Exports what a run tuned, or an adapter merged into the config's base, and verifies it.

    Args:
      config, workdir: Config and directory of the run.
      merged: Data type in which to export a merged model, or "auto" for that in which the base is
        stored. With None, LoRA runs export the adapter, and other runs the whole model as "auto".
      into: What replaces quantised weights in a merged model: "original" or "dequantised". None
        takes "original" where the origin has full-precision weights.
      to: Path of the export. By default it is a name under `workdir/export`.
      step: Run checkpoint to export: a step number, "best" or "last".
      adapter: Adapter to merge and export instead of a run checkpoint, a path or a Hub repository;
        the command line requires `merged` and `to` with it.
      outside: Whether to compare with transformers and PEFT too.
      overwrite: Whether to replace an existing export.
      progress: Display for progress and results.

    Returns:
      The path and the report. Its `check` raises if verification failed.
    """
    progress = (progress or Progress()) if agreement.first() else Quiet()
    if outside:
        reference.check(to)
    checkpoints = None if adapter else run_checkpoints(resolved(config), workdir)
    number = None if adapter else agreement.of_first(partial(step_of, checkpoints, step))
    whole = merged is not None or config.trainable.kind != "lora"
    name = default_name(whole, config.model.path, None if step == "best" else number)
    wanted = Wanted(
        to or workdir / EXPORTS / name,
        whole,
        merged or AUTO,
        into,
        overwrite,
        outside,
    )
    with contextlib.ExitStack() as stack:

        def looked() -> tuple[bool, str]:
            there = to is None and not overwrite and is_there(wanted, number)
            refuse_what_is_there(replace(wanted, there=there))
            claim(workdir)
            stack.enter_context(locked_directory(workdir / EXPORTS, "export"))
            return there, begun(workdir)

        there, today = agreement.of_first(looked)
        wanted = replace(wanted, there=there)
        assembly = Assembly.of(config, today)
        given = rows(assembly, progress)
        progress.draw(f"reading the weights of {config.model.path}")
        if adapter:
            tuned = adapted(assembly, adapter)
        else:
            tuned = restored(assembly, checkpoints, number)
            tuned.workdir = workdir
        return write_verified(tuned, wanted, given or verify.random_rows(tuned.model), progress)


def write_verified(
    tuned: Tuned, wanted: Wanted, rows: ComparisonRows, progress: Progress
) -> Exported:
    """Writes an export under a temporary name, verifies it, and gives it its final name.

    Args:
      tuned: The tuned model; if it is merged, its variables are emptied.
      wanted: What to write, and where. If it is there already, it is only verified.
      rows: Rows on which the files are compared with the model.
      progress: Display for progress and results.

    Returns:
      The final path and the report. A failed export is moved to a free name beside the target. All
      processes must call this; the first one writes, and all of them load what it wrote.
    """
    agreement.refuse_different("the rows that exports are verified on", _tokens(rows))
    chosen = (lambda: str(wanted.target)) if wanted.there else lambda: str(staging(wanted.target))
    staged = Path(agreement.of_first(chosen))
    progress.draw(f"writing {wanted.target}")
    if not wanted.there:
        save(tuned, wanted, staged)
    progress.draw(f"verifying {wanted.target}")
    with _discarding(staged, wanted):
        check = _check(tuned, wanted, staged, rows)
    report = _about(tuned, wanted, rows)
    problem, found = verify_files(check, rows)
    if wanted.outside and not problem:
        problem, report["reference"] = compare_outside(tuned, wanted, staged, rows)
    path = agreement.of_first(
        lambda: str(_ended(tuned, wanted, staged, (report, problem, found, check), progress))
    )
    return Exported(Path(path), report, problem)


def _tokens(rows: ComparisonRows) -> list:
    return [rows.batch.tokens.tolist(), rows.prompts]


def _ended(
    tuned: Tuned,
    wanted: Wanted,
    staged: Path,
    outcome: tuple[dict, str, Comparison | Same | None, Check],
    progress: Progress,
) -> Path:
    """Writes the report of a verified export, names it, and describes it; returns its path.

    Args:
      tuned: The tuned model.
      wanted: What was written, and where.
      staged: Path of the written files.
      outcome: The report to complete, the mismatch that was found or "", and the comparison with
        what it was made by.
      progress: Display for results.

    Returns:
      The final path.
    """
    report, problem, found, check = outcome
    report |= {
        "kept": not problem,
        "problem": problem or None,
        "comparison": found.told() if isinstance(found, Comparison) else None,
        "same": asdict(found) if isinstance(found, Same) else None,
        "merging": {into: each.moved() for into, each in check.merging.items()},
    }
    report |= _contents(staged, wanted)
    report["warnings"] += check.warnings
    final = free_name(wanted.target, "failed") if problem else wanted.target
    write_json(report_file(staged), report)
    if staged != wanted.target or problem:
        _named(staged, final, wanted, progress)
    if not problem:
        write_card(tuned, wanted, progress)
    for line in _lines(report, found, check, final, wanted.there):
        progress.say(line)
    return final


def _check(tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows) -> Check:
    if wanted.merged:
        return check_merged(tuned, wanted, staged, rows)
    return check_adapter(tuned, staged, rows)


@contextlib.contextmanager
def _discarding(staged: Path, wanted: Wanted) -> Iterator[None]:
    """Removes what was just written if the tuned model itself cannot be used."""
    try:
        yield
    except ValueError:
        if agreement.first() and not wanted.there:
            shutil.rmtree(staged) if staged.is_dir() else staged.unlink(missing_ok=True)
        raise


def _named(staged: Path, final: Path, wanted: Wanted, progress: Progress) -> None:
    if kept := give_name(staged, final, wanted):
        progress.say(f"{final} was not as an export had written it: it is kept as {kept}")


def save(tuned: Tuned, wanted: Wanted, place: Path) -> Path:
    """Writes an adapter or merged model to `place`, replacing an earlier one; does not verify."""
    config = tuned.assembly.config
    tokenizer = _tokenizer(tuned.assembly)
    if wanted.merged:
        given = {"dtype": wanted.dtype, "into": wanted.into, "tokenizer": tokenizer}
        return save_merged(tuned.model, tuned.variables, place, **given, overwrite=True)
    return save_adapter(
        tuned.variables,
        place,
        tuned.assembly.checkpoint,
        initial=tuned.initial,
        rslora=config.trainable.variant == "rslora",
        name=config.model.path,
        overwrite=True,
        tokenizer=tokenizer,
    )


def _tokenizer(assembly: Assembly) -> TokenizerFiles | None:
    """Returns the files of the config's tokenizer, or None if it cannot be opened."""
    try:
        return assembly.tokenizer_files
    except (ValueError, OSError):
        return None


def write_card(tuned: Tuned, wanted: Wanted, progress: Progress) -> None:
    """Writes the card of an export, if a run of the config tuned it.

    If records of the run are damaged, the export stands without a card, and a warning says so.
    """
    if tuned.workdir is None:
        return
    whole = "npz" if wanted.target.suffix == NPZ else "merged"
    kind = whole if wanted.merged else "adapter"
    base = tuned.assembly.checkpoint
    try:
        card.write(wanted.target, tuned.workdir, tuned.assembly.config, kind=kind, base=base)
    except ValueError as error:
        progress.say(f"warning: no model card was written: {error}, and export again")


def _about(tuned: Tuned, wanted: Wanted, rows: ComparisonRows | None) -> dict[str, Any]:
    given = tuned.assembly.config.model
    return {
        "jaxtune": jaxtune.__version__,
        "what": "merged" if wanted.merged else "adapter",
        "base": given.path,
        "step": tuned.step,
        "adapter": tuned.adapter,
        "dtype": wanted.written_dtype,
        "into": wanted.into,
        "quant": given.quant,
        "compute": compute_of(tuned.model),
        **({"rows": {"from": rows.about, "count": len(rows.batch.tokens)}} if rows else {}),
        "reference": None,
    }


def _contents(staged: Path, wanted: Wanted) -> dict[str, Any]:
    """Returns the files of an export, those among them that are the tokenizer's, and warnings."""
    files = _files(staged, wanted.target.name, foreign(staged) if wanted.there else ())
    patterns = (*TOKENIZER_FILES, *PROCESSOR_FILES)
    tokenizer = [name for name in files if any(fnmatch(name, each) for each in patterns)]
    lacking = not tokenizer and staged.is_dir()
    warning = "it has no tokenizer, as neither data.tokenizer nor the base has one that opens"
    return {"files": files, "tokenizer": tokenizer, "warnings": [warning] if lacking else []}


def _files(path: Path, name: str, besides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns size and SHA-256 of the files in a directory, or of one file, listed as `name`.

    Files that are named in `besides` are left out.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = {}
    for file in files:
        if file.name not in (REPORT, README, CURVE, *besides):
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found[file.name if path.is_dir() else name] = {
                "bytes": file.stat().st_size,
                "sha256": digest,
            }
    return found


def _lines(
    report: dict, found: Comparison | Same | None, check: Check, final: Path, there: bool
) -> Iterator[str]:
    size = sum(each["bytes"] for each in report["files"].values())
    if report["kept"]:
        yield f"verified: reloaded from disk and compared on {report['rows']['from']}: {found}"
    for into, each in check.merging.items():
        base = "" if into == "merged" else f" into the {into} weights"
        yield f"effect of merging{base} {in_dtype(report['dtype'])}: {each}"
    yield from (f"warning: {each}" for each in report["warnings"])
    if apart := report["reference"]:
        yield f"loaded in transformers: {_comparison(apart)}"
    state = "unchanged in" if there and report["kept"] else "written to"
    yield f"export {state} {final} ({size:,} bytes); measurements in {report_file(final)}"


def _comparison(told: dict[str, Any]) -> Comparison:
    return Comparison(**{name: value for name, value in told.items() if name != "kept"})
