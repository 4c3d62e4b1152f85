"""Loads a tuned model: from a run checkpoint, or an adapter on top of its base."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.peft.load_adapter import load_adapter
from jaxtune.config.load import difference
from jaxtune.display.errors import UserError
from jaxtune.models import host
from jaxtune.models.paligemma import Model
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import CONFIG, read_json
from jaxtune.workdir.errors import WorkdirError
from jaxtune.workdir.identity import refuse_replaced

DEPENDS = ("model.", "trainable.", "seed")  # fields that a checkpoint's leaves do not determine


@dataclass
class Tuned:
    """A tuned model. Merging it empties its variables, to free their memory."""

    assembly: Assembly
    model: Model
    variables: dict
    step: int | None = None
    workdir: Path | None = None  # directory of the run that tuned it
    adapter: str | None = None  # source of its adapter, if it is not from a run of this config

    @cached_property
    def initial(self) -> dict | None:
        """Variables at step 0 if PiSSA took the initial adapters from the weights, else None."""
        if self.adapter is not None or self.assembly.config.trainable.init != "pissa":
            return None
        return self.assembly.model()[1]


def run_checkpoints(settings: Mapping[str, Any], workdir: Path) -> Checkpoints:
    """Opens the checkpoints of a run read-only; raises if none exist or the config differs."""
    found = Checkpoints(workdir / "checkpoints")
    if not found.steps:
        raise UserError(
            f"{found.directory} contains no checkpoint: train first, or pass the run's --workdir"
        )
    before = read_json(workdir / CONFIG)
    if before is None:
        raise WorkdirError(
            f"{workdir / CONFIG} is missing, so the config of the run's checkpoints is not known: "
            "restore it, or run the training command again with --accept-changes, which writes it"
        )
    changes = [each for each in difference(before, settings) if each.startswith(DEPENDS)]
    if changes:
        raise WorkdirError(
            "\n  ".join([f"{workdir} contains a run of another config; differences:", *changes])
            + "\nPass the config that it was run with"
        )
    return found


def step_of(checkpoints: Checkpoints, step: str) -> int:
    """Returns the step of a run checkpoint, given as a number, "best" or "last".

    "best" means the last one if the run kept no best checkpoint.
    """
    steps = checkpoints.steps
    if step not in ("best", "last"):
        if not step.isdecimal() or int(step) not in steps:
            raise UserError(
                f"--step {step}: expected best, last, or a checkpoint in "
                f"{checkpoints.directory}: {', '.join(map(str, steps))}"
            )
        return int(step)
    position = checkpoints.position() or {"tally": {}}
    best = position["tally"].get("best_step")
    return best if step == "best" and best in steps else steps[-1]


def restored(assembly: Assembly, checkpoints: Checkpoints, step: int) -> Tuned:
    """Loads the base and restores a run checkpoint on top of it.

    Raises WorkdirError if the base or another file that the run stands on was replaced.
    """
    refuse_replaced(checkpoints.directory.parent, assembly.identity, "or train again")
    model, variables = assembly.model()
    start = assembly.start(variables, assembly.optimizer(assembly.config.steps or 1))
    del variables  # the leaves that train come from the checkpoint
    state = start.restored(checkpoints.restore(start.shapes, step).state)
    checkpoints.close()
    return Tuned(assembly, model, host.returned(state.variables), step)


def adapted(assembly: Assembly, adapter: str) -> Tuned:
    """Loads any adapter on the config's base."""
    model, base = assembly.base()
    variables = load_adapter(model, base, adapter)
    return Tuned(assembly, model, variables, adapter=adapter)
