"""A model that was tuned: taken from a run's checkpoint, or an adapter put on its base."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.peft.load_adapter import load_adapter
from jaxtune.config.load import difference
from jaxtune.models.paligemma import Model
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import CONFIG, WorkdirError

DEPENDS = ("model.", "trainable.", "seed")  # what a checkpoint's leaves alone do not tell


@dataclass
class Tuned:
    """A model that was tuned; where it is merged, its variables are taken and freed."""

    assembly: Assembly
    model: Model
    variables: dict
    dtype: str  # that the base is held in
    step: int | None = None
    workdir: Path | None = None  # of the run that tuned it
    adapter: str | None = None  # where its adapter is from, if from no run of this config

    @cached_property
    def initial(self) -> dict | None:
        """The variables at the start, if that took the adapters out of the weights."""
        if self.adapter is not None or self.assembly.config.trainable.init != "pissa":
            return None
        return self.assembly.model()[1]


def run_checkpoints(settings: Mapping[str, Any], workdir: Path) -> Checkpoints:
    """Those of the run of a resolved config."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of what is meant: to read only
    found = Checkpoints(workdir / "checkpoints")
    if not found.steps:
        raise ValueError(
            f"{found.directory} holds no checkpoint: train first, or name the run's --workdir"
        )
    before = json.loads((workdir / CONFIG).read_bytes())
    changes = [each for each in difference(before, settings) if each.startswith(DEPENDS)]
    if changes:
        raise WorkdirError(
            "\n  ".join([f"{workdir} holds a run of another config; what differs:", *changes])
            + "\nGive the config it was run with"
        )
    return found


def step_of(checkpoints: Checkpoints, step: str) -> int:
    """The checkpoint that is meant by a number, by "best" or "last"."""
    steps = checkpoints.steps
    if step not in ("best", "last"):
        if not step.isdecimal() or int(step) not in steps:
            raise ValueError(
                f"--step {step}: expected best, last, or one of those that {checkpoints.directory} "
                f"holds: {', '.join(map(str, steps))}"
            )
        return int(step)
    position = checkpoints.position() or {"tally": {}}
    best = position["tally"].get("best_step")
    return best if step == "best" and best in steps else steps[-1]


def restored(assembly: Assembly, checkpoints: Checkpoints, step: int) -> Tuned:
    """What a checkpoint of a run holds, beside its base."""
    model, variables = assembly.model()
    start = assembly.start(variables, assembly.optimizer(assembly.config.steps or 1))
    del variables  # what trains of them is the checkpoint's
    state = start.restored(checkpoints.restore(start.shapes, step).state)
    checkpoints.close()
    return Tuned(assembly, model, state.variables, start.dtype, step)


def adapted(assembly: Assembly, adapter: str) -> Tuned:
    """An adapter that anyone made, on the config's base."""
    model, base = assembly.base()
    variables = load_adapter(model, base, adapter)
    return Tuned(assembly, model, variables, assembly.config.model.dtype, adapter=adapter)
