"""What a sweep file says: the space, the number of trials, the sampler, the pruner, the metric."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtune.assembly.metrics import metrics_of
from jaxtune.assembly.objective import objective_of
from jaxtune.config import python_file
from jaxtune.config.schema import FIELDS, Config
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import shown
from jaxtune.files.store import is_remote
from jaxtune.runs.plan.targets import hint
from jaxtune.runs.sweep.space import MOST_POINTS, Space

SAMPLERS = ("grid", "random", "tpe", "qmc", "gp", "cmaes", "nsga2")
PRUNERS = ("median", "halving", "hyperband")
TOGETHER = 8  # trials that a worker takes at once by default
LOSS = "loss"  # the metric that is the held-out loss
KEYS = ("space", "trials", "sampler", "pruner", "metric", "seed")


class SweepError(UserError):
    """A sweep that cannot be run as it is described."""


@dataclass(frozen=True)
class Spec:
    """A sweep around a config.

    Attributes:
      config: Config of every trial, before its overrides; its best checkpoint is by the metric.
      space: The keys that vary.
      trials: Number of trials.
      sampler: One of `SAMPLERS`.
      pruner: One of `PRUNERS`, or None to run every trial to its end.
      metric: "loss" for the held-out loss, or the name of a metric of answers.
      higher: Whether a higher value of the metric is better.
      seed: Seed of the sampler.
    """

    config: Config
    space: Space
    trials: int
    sampler: str
    pruner: str | None
    metric: str
    higher: bool
    seed: int

    @classmethod
    def of(cls, config: Config, given: Mapping[str, Any], own_metric: bool = False) -> "Spec":
        """Returns the sweep that a dictionary describes, as `get_sweep()` returns it.

        Args:
          config: Config of every trial, before its overrides.
          given: Values of some of `KEYS`, of which "space" is required.
          own_metric: Whether a function of the caller computes the metric; lower is then better.
        """
        if unknown := [key for key in given if key not in KEYS]:
            raise SweepError(
                f"the sweep has no setting {shown(unknown[0])}{hint(str(unknown[0]), KEYS)}; it "
                f"may have {', '.join(KEYS)}"
            )
        space = Space.of(given.get("space", {}), config)
        sampler = given.get("sampler") or ("tpe" if space.ranged else "grid")
        pruner = given.get("pruner")
        _check_name("sampler", sampler, SAMPLERS)
        if pruner is not None:
            _check_name("pruner", pruner, PRUNERS)
        trials = _trials(given.get("trials"), sampler, space)
        seed = _whole("seed", given.get("seed", 0), 0, 2**31 - 1)
        metric = given.get("metric") or LOSS
        _check_config(config, pruner)
        if own_metric and pruner:
            raise SweepError(
                f"pruner: {pruner} needs the metric at every evaluation, and an objective of your "
                "own is computed at the end; leave out the pruner, or name a metric"
            )
        higher = False
        if not own_metric:
            higher = _higher(config, metric)
            best_by = replace(config.checkpoint, metric="" if metric == LOSS else metric)
            config = replace(config, checkpoint=best_by)
        return cls(config, space, trials, sampler, pruner, str(metric), higher, seed)

    @property
    def described(self) -> dict[str, Any]:
        """What decides the trials, as JSON, by which two sweeps are compared."""
        names = ("trials", "sampler", "pruner", "metric", "seed")
        return {"space": self.space.described} | {name: getattr(self, name) for name in names}


def read(path: str) -> Mapping[str, Any]:
    """Returns what `get_sweep()` of a sweep file, or of a config file, returns."""
    return python_file.values_of(path, function="get_sweep")[1]


def refuse_remote(workdir: Any) -> None:
    """Raises SweepError if a workdir is in an object store."""
    if is_remote(workdir):
        raise SweepError(
            f"{workdir}: the workers of a sweep share a directory with locks, which an object "
            "store does not have; name a local or a network directory"
        )


def _check_name(what: str, name: Any, known: tuple[str, ...]) -> None:
    if name not in known:
        near = hint(name, known) if isinstance(name, str) else ""
        raise SweepError(f"{what}: found {shown(name)}{near}, expected one of {', '.join(known)}")


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise SweepError(
            f"{name}: found {shown(value)}, expected a whole number from {least:,} to {most:,}"
        )
    return value


def _trials(given: Any, sampler: str, space: Space) -> int:
    if sampler == "grid":
        points = len(space.points)
        if given is not None and given != points:
            raise SweepError(
                f"trials: found {shown(given)}, but the grid has {points:,} points; leave out "
                "trials, or choose the sampler random"
            )
        return points
    if given is None:
        raise SweepError(f"trials: is required with the sampler {sampler}, such as trials=24")
    return _whole("trials", given, 1, MOST_POINTS)


def _check_config(config: Config, pruner: str | None) -> None:
    if config.hub.repo:
        raise SweepError(
            "hub.repo: every trial would push to it; leave it empty in a sweep "
            "(--config.hub.repo=), and push the best trial afterwards"
        )
    if pruner and config.eval.every is None:
        raise SweepError(
            f"pruner: {pruner} judges trials at their evaluations, but eval.every is None, so that "
            "there is one at the end only; set eval.every"
        )


def _higher(config: Config, metric: Any) -> bool:
    """Returns whether higher is better, or raises if trials of the config lack the metric."""
    named = metrics_of(config.eval.metrics, config.data.task)
    of_answers = {each.name: each.higher for each in named}
    objective = objective_of(config.objective)
    measured = {LOSS: False, **getattr(objective, "METRICS", {})}  # without answers
    known = {**of_answers, **measured}
    if metric not in known:
        near = hint(metric, known) if isinstance(metric, str) else ""
        raise SweepError(
            f"metric: nothing computes {shown(metric)}{near}; expected {', '.join(measured)}, or a "
            f"metric of answers: {', '.join(of_answers)}"
        )
    given = config.eval
    if not (given.source or given.split or given.holdout):
        raise SweepError(
            f"metric: {metric} is measured on held-out rows, and the config has none; set "
            "eval.holdout, eval.source or eval.split"
        )
    if metric not in measured and not given.answers:
        raise SweepError(
            f"metric: {metric} is a metric of answers, and eval.answers is 0; set eval.answers "
            f"({FIELDS['eval.answers'].metadata['meaning']})"
        )
    return known[metric]
