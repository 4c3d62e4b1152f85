"""What a run says of itself: metrics.jsonl, and the trackers that the config names.

metrics.jsonl holds what another run of the same config would find too, so no times: a run that was
killed and gone on with leaves the same bytes as one that was not.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxtune.config.run_sections import Log
from jaxtune.files import whole_file
from jaxtune.workdir.directory import Workdir
from jaxtune.workdir.tensorboard import EventFile

METRICS = "metrics.jsonl"


class Tracker(Protocol):
    """Where numbers go, beside metrics.jsonl."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Journal:
    """Lines of numbers by step."""

    def __init__(self, file: Path, trackers: list[Tracker]):
        self._file, self._trackers = file, trackers

    def write(
        self, step: int, kind: str, values: Mapping[str, float], timings: Mapping[str, float]
    ) -> None:
        """A line of what was found, on the disk when this returns; timings go to trackers alone."""
        rounded = {name: _rounded(value) for name, value in values.items()}
        line = json.dumps({"step": step, "kind": kind, **rounded}, allow_nan=False)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        for tracker in self._trackers:
            tagged = {f"{kind}/{name}": value for name, value in (rounded | {**timings}).items()}
            tracker.write(step, tagged)

    def close(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.close()


class Silent:
    """The journal of a process that is not the first."""

    def write(self, *_: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class WeightsAndBiases:
    """A run at Weights & Biases; with WANDB_MODE=offline it is kept beside the others."""

    def __init__(self, workdir: Workdir, project: str, settings: Mapping[str, Any]):
        try:
            import wandb
        except ImportError:
            raise ValueError(
                f"log.wandb is {project!r}, and wandb is not installed: "
                "pip install wandb, or leave log.wandb empty"
            ) from None
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
            raise ValueError(
                f"log.wandb: Weights & Biases cannot be reached ({error}); "
                "set WANDB_MODE=offline, or leave log.wandb empty"
            ) from None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by tag."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Say that the run has ended."""
        self._run.finish()


@contextlib.contextmanager
def journal(
    workdir: Workdir, log: Log, settings: Mapping[str, Any], step: int, first: bool
) -> Iterator[Any]:
    """The journal of a run that begins, or goes on, behind a step; only the `first` process's.

    `settings` is the resolved config, which trackers show beside the numbers.
    """
    if not first:
        yield Silent()
        return
    file = workdir.path / METRICS
    _cut(file, step)
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


def _cut(file: Path, step: int) -> None:
    """Leave only the lines of a run up to a step, or none of one that begins anew.

    The last line may be half written.
    """
    with contextlib.suppress(FileNotFoundError):
        lines = file.read_bytes().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        kept = [line for line in whole if step and json.loads(line)["step"] <= step]
        if kept != lines:
            with whole_file(file) as out:
                out.writelines(kept)


def _rounded(value: float) -> float:
    """Nine digits, which tell every two float32 apart."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
