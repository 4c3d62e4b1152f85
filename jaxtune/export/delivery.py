"""The export at the end of a run, and what is checked for it at the start."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from jaxtune.config.schema import Config
from jaxtune.display.progress import Progress
from jaxtune.export import prove, verify
from jaxtune.export.targets import Wanted, default_name, refuse_foreign
from jaxtune.export.tuned import Tuned
from jaxtune.export.write import EXPORTS, Exported, save, write_verified
from jaxtune.workdir import agreement
from jaxtune.workdir.directory import locked_directory
from jaxtune.workdir.errors import WorkdirError

WAIT = 600.0  # longest time in seconds that a run waits for another export to end
PAUSE = 0.5  # seconds between two attempts to take the lock


def wanted_in(folder: Path, config: Config) -> Wanted:
    """Returns what a run exports into a folder: its adapter, or else the whole model."""
    whole = config.trainable.kind != "lora"
    return Wanted(folder / default_name(whole, config.model.path), whole, overwrite=True)


def save_into(tuned: Tuned, folder: Path) -> Path:
    """Writes the export of a checkpoint into a folder, without verifying it; returns its path."""
    wanted = wanted_in(folder, tuned.assembly.config)
    return save(tuned, wanted, wanted.target)


def refuse_in_the_way(config: Config, workdir: Path) -> None:
    """Raises if files that no export has written are where the export of a run will be.

    All processes must call this; the first one looks.
    """
    wanted = wanted_in(workdir / EXPORTS, config)
    agreement.of_first(lambda: refuse_foreign(wanted.target, "name another --workdir"))


def deliver(tuned: Tuned, progress: Progress) -> Exported:
    """Writes the export of a run over an earlier one, and verifies it on a few rows.

    If an `export` command is at work in the workdir, its end is awaited for at most `WAIT` seconds.
    All processes must call this.

    Args:
      tuned: The tuned model, with the workdir of its run.
      progress: Display for progress and results.

    Returns:
      The export. Raises WorkdirError if another export is still at work.
    """
    wanted = wanted_in(tuned.workdir / EXPORTS, tuned.assembly.config)
    with contextlib.ExitStack() as stack:
        agreement.of_first(lambda: stack.enter_context(_locked(wanted.target.parent, progress)))
        rows = prove.rows(tuned.assembly, progress) or verify.random_rows(tuned.model)
        return write_verified(tuned, wanted, rows, progress)


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Locks the directory of the exports, once another export that holds it has ended."""
    end = time.monotonic() + WAIT
    with contextlib.ExitStack() as stack:
        waiting = False
        while True:
            try:
                stack.enter_context(locked_directory(folder, "export"))
                break
            except WorkdirError:
                if time.monotonic() >= end:
                    raise WorkdirError(
                        f"the run is done and saved, but not exported: for {WAIT:.0f} seconds "
                        f"another export has been using {folder}. When it has ended, run the same "
                        "command again, or the export command"
                    ) from None
            if not waiting:
                progress.say(f"another export is using {folder}: waiting up to {WAIT:.0f} seconds")
                waiting = True
            time.sleep(PAUSE)
        yield
