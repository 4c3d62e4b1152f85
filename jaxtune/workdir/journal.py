"""The metrics log of a run: metrics.jsonl, and the trackers that the config enables.

metrics.jsonl holds only values that another run of the same config would reproduce, hence no
timings: a run that was killed and resumed leaves the same bytes as one that was not.
"""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxtune.config.run_sections import Log
from jaxtune.display.errors import UserError
from jaxtune.files import UnwritableError, whole_file
from jaxtune.workdir.directory import METRICS, Workdir, read_bytes
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.tensorboard import EventFile


class Tracker(Protocol):
    """A destination for metrics other than metrics.jsonl, such as TensorBoard."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Journal:
    """Appends metrics to metrics.jsonl, and forwards them to trackers."""

    def __init__(self, file: Path, trackers: list[Tracker]):
        self._file, self._trackers = file, trackers

    def write(
        self, step: int, kind: str, values: Mapping[str, float], timings: Mapping[str, float]
    ) -> None:
        """Writes one line, which is on disk when this returns.

        Args:
          step: Step after which the values were measured.
          kind: What was measured, such as "train"; the tag prefix `kind/` in trackers.
          values: Reproducible metrics by name, logged to the file and to trackers.
          timings: Metrics that vary between identical runs, logged to trackers only.
        """
        rounded = {name: _rounded(value) for name, value in values.items()}
        line = json.dumps({"step": step, "kind": kind, **rounded}, allow_nan=False)
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UnwritableError(self._file, error) from None
        for tracker in self._trackers:
            tagged = {f"{kind}/{name}": value for name, value in (rounded | {**timings}).items()}
            tracker.write(step, tagged)

    def close(self) -> None:
        """Ends TensorBoard and Weights & Biases; metrics.jsonl needs no ending."""
        for tracker in self._trackers:
            tracker.close()


class Silent:
    """The journal of every process but the first: it writes nothing."""

    def write(self, *_: Any) -> None:
        """Ignores the metrics: the first process writes them."""

    def close(self) -> None:
        """Has nothing to close."""


class WeightsAndBiases:
    """Tracks a run at Weights & Biases; with WANDB_MODE=offline its files stay in the workdir.

    The unique name of the workdir's run is the id, so a resumed run continues the same record.
    """

    def __init__(self, workdir: Workdir, project: str, settings: Mapping[str, Any]):
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                id=workdir.name,
                name=workdir.name,
                dir=workdir.path,
                config=settings,
                resume="allow",
            )
        except Exception as error:
            raise UserError(
                f"log.wandb: Weights & Biases cannot be reached ({error}); "
                "set WANDB_MODE=offline, or leave log.wandb empty"
            ) from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values by tag, such as `train/loss`."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Marks the run as finished."""
        self._run.finish()


def refuse_missing(log: Log) -> None:
    """Raises UserError if the config asks for Weights & Biases, which is not installed."""
    if log.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"log.wandb is {log.wandb!r}, but wandb is not installed: "
            "pip install wandb, or leave log.wandb empty"
        )


@contextlib.contextmanager
def journal(
    workdir: Workdir,
    log: Log,
    settings: Mapping[str, Any],
    step: int,
    first: bool,
    owed: bool = False,
) -> Iterator[Any]:
    """Opens the journal of a run that begins, or resumes after a step, and closes it at the end.

    Args:
      workdir: Directory of the run, which gets metrics.jsonl and the trackers' files.
      log: Section of the config that enables trackers.
      settings: Resolved config, which trackers show beside the metrics.
      step: Last step that is done; lines of later steps are deleted, and at 0 all lines.
      first: Whether this is the first process; the others get a journal that writes nothing.
      owed: Whether the evaluation after that step is to be done, so that lines of it are deleted.

    Returns:
      A context manager that yields a `Journal`, or `Silent` where `first` is false.
    """
    if not first:
        yield Silent()
        return
    file = workdir.path / METRICS
    _cut(file, step, owed)
    trackers: list[Tracker] = []
    if log.tensorboard:
        trackers.append(EventFile(workdir.path / "tensorboard", step + 1))
    if log.wandb:
        trackers.append(WeightsAndBiases(workdir, log.wandb, settings))
    found = Journal(file, trackers)
    try:
        yield found
    finally:
        found.close()


def refuse_foreign_lines(file: Path) -> None:
    """Raises WorkdirError if metrics.jsonl has a line that jaxtune did not write."""
    for _ in entries(file):
        pass


def entries(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields the lines of metrics.jsonl, and what they say; none if there is no such file.

    A last line without a line break is incomplete, as its process was killed, and is left out.
    Raises WorkdirError for a line that jaxtune did not write.
    """
    lines = (read_bytes(file) or b"").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n"):
            yield line, _entry(line, f"{file}:{number}")


def _entry(line: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if isinstance(found["kind"], str) and type(found["step"]) is int:
            return found
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        pass
    raise WorkdirError(
        f"{place}: expected a JSON object with a step and a kind, as jaxtune writes them, found "
        f"{line[:40]!r}; remove this line, or move the file away"
    )


def _cut(file: Path, step: int, owed: bool) -> None:
    """Deletes the lines after a step, or all lines if the run starts anew at step 0.

    If the evaluation after the step is `owed`, its lines, which a killed process left, go as well.
    """
    if not file.exists():
        return

    def holds(found: Mapping[str, Any]) -> bool:
        again = owed and found["step"] == step and found["kind"] != "train"
        return bool(step) and found["step"] <= step and not again

    kept = b"".join(line for line, found in entries(file) if holds(found))
    if kept != file.read_bytes():
        with whole_file(file) as out:
            out.write(kept)


def _rounded(value: float) -> float:
    """Rounds to nine significant digits, which are enough to tell any two float32 apart."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
