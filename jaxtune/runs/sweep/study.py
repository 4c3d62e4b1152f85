"""The study of a sweep: its trials with their overrides, reports and results, kept by Optuna."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from jaxtune.config.load import resolved
from jaxtune.config.schema import SCHEMA
from jaxtune.runs.sweep.space import Dimension, Overrides, Range
from jaxtune.runs.sweep.spec import Spec, SweepError

SWEEP, POINTS, NAMES, CONFIG = "sweep", "points", "names", "config"  # attributes of the study
OVERRIDES, REASON, STEPS, SECONDS = "overrides", "reason", "steps", "seconds"  # and of a trial
STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True, eq=False)
class Study:
    """The trials of a sweep in Optuna's storage; a trial is named by its number, from 0.

    All trials exist from the start and wait. What a sampler draws for one is decided when it
    begins, so that it knows the results so far.
    """

    spec: Spec
    storage: optuna.storages.BaseStorage
    study: optuna.Study
    id: int

    @classmethod
    def of(cls, spec: Spec, storage: Any, name: str, extend: bool = False) -> "Study":
        """Opens the study of a sweep, or creates it.

        Raises SweepError if a study of this name belongs to another sweep, unless `extend` adds
        this one's trials to it.
        """
        direction = "maximize" if spec.higher else "minimize"
        study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, load_if_exists=True
        )
        found = cls(spec, storage, study, storage.get_study_id_from_name(name))
        found._adopt(name, extend)
        found._fill()
        return found

    def _adopt(self, name: str, extend: bool) -> None:
        known = self.study.user_attrs
        sweep, config = self.spec.described, resolved(self.spec.config)
        if SWEEP not in known:
            if self.spec.sampler == "grid":
                self.study.set_user_attr(POINTS, self.spec.space.points)
            self.study.set_user_attr(NAMES, {key: key for key in sweep["space"]})
            self.study.set_user_attr(CONFIG, config)
            self.study.set_user_attr(SWEEP, sweep)
            return
        before = known[SWEEP]
        changes = list(_differences(before, _plain(sweep)))
        fields = SCHEMA.difference(known[CONFIG], config)
        if fields or before["metric"] != sweep["metric"]:
            raise SweepError(
                "\n  ".join([f"the study {name} belongs to another config:", *fields, *changes])
                + "\nName another --workdir, or another --study"
            )
        if changes and not extend:
            raise SweepError(
                "\n  ".join([f"the study {name} belongs to another sweep:", *changes])
                + "\nName another --workdir or --study for a new study, or pass --extend to add "
                "the trials of this sweep to it"
            )
        if changes:
            self._extend(before, sweep)

    def _extend(self, before: Mapping[str, Any], sweep: Mapping[str, Any]) -> None:
        """Adds the trials of another space; a key whose values change gets a new name in Optuna."""
        known = self.study.user_attrs
        old = [_plain(point) for point in known.get(POINTS, [])]
        if (before["sampler"] == "grid") != (sweep["sampler"] == "grid"):
            raise SweepError("--extend: a grid can be extended by a grid only")
        if sweep["sampler"] == "grid":
            new = [each for each in _plain(self.spec.space.points) if each not in old]
            self.study.set_user_attr(POINTS, [*old, *new])
        elif sweep["trials"] < before["trials"]:
            raise SweepError(
                f"--extend: the study has {before['trials']:,} trials already; set trials to more"
            )
        names, described = dict(known[NAMES]), _plain(sweep["space"])
        for key, values in described.items():
            if before["space"].get(key) != values:
                names[key] = f"{key} from {before['trials']}" if key in names else key
        self.study.set_user_attr(NAMES, names)
        self.study.set_user_attr(SWEEP, sweep)

    def _fill(self) -> None:
        """Creates the trials that are missing.

        Two workers may do so at once: trials beyond the number of the sweep are never looked at.
        """
        waiting = optuna.trial.create_trial(state=TrialState.WAITING)
        there = len(self.storage.get_all_trials(self.id, deepcopy=False))
        for _ in range(there, self.count):
            self.storage.create_new_trial(self.id, waiting)

    @property
    def count(self) -> int:
        """Number of trials that the sweep will have: the points of its grid, or as it says."""
        attributes = self.study.user_attrs
        return len(attributes[POINTS]) if POINTS in attributes else attributes[SWEEP]["trials"]

    @property
    def trials(self) -> list[FrozenTrial]:
        """The trials by number."""
        found = self.storage.get_all_trials(self.id, deepcopy=False)
        return sorted(found, key=lambda trial: trial.number)[: self.count]

    def trial(self, number: int) -> FrozenTrial:
        """Returns a trial as it is now."""
        return self.storage.get_trial(self._id_of(number))

    def begin(self, number: int) -> Overrides:
        """Marks a trial as running, and returns its overrides, drawn when it first begins."""
        trial = self._id_of(number)
        self.storage.set_trial_state_values(trial, TrialState.RUNNING)
        known = self.storage.get_trial(trial).user_attrs.get(OVERRIDES)
        if known is not None:
            return dict(known)
        overrides = _plain(self._drawn(number, trial))
        self.storage.set_trial_user_attr(trial, OVERRIDES, overrides)
        return overrides

    def report(self, number: int, step: int, value: float) -> bool:
        """Records the metric after a step, and returns whether the trial is to be pruned."""
        trial = self._id_of(number)
        self.storage.set_trial_intermediate_value(trial, step, value)
        if self.spec.pruner is None:
            return False
        return pruner(self.spec).prune(self.study, self.storage.get_trial(trial))

    def end(self, number: int, state: TrialState, value: float | None, **about: Any) -> None:
        """Records the result of a trial, once; `about` has its steps, seconds and reason."""
        trial = self._id_of(number)
        for name, content in about.items():
            self.storage.set_trial_user_attr(trial, name, content)
        values = None if value is None else [value]
        self.storage.set_trial_state_values(trial, state, values)

    def _id_of(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.id, number)

    def _drawn(self, number: int, trial: int) -> Overrides:
        """Returns the overrides of a new trial from the grid or the sampler."""
        attributes = self.study.user_attrs
        if POINTS in attributes:
            return attributes[POINTS][number]
        # Opened afresh, as a study keeps what its sampler has read of other workers' trials.
        study = optuna.load_study(
            study_name=self.study.study_name,
            storage=self.storage,
            sampler=sampler(self.spec, number),
        )
        drawing, names = optuna.trial.Trial(study, trial), attributes[NAMES]
        return self.spec.space.choose(lambda each: _suggested(drawing, names[each.key], each))


def _suggested(trial: optuna.Trial, name: str, dimension: Dimension) -> Any:
    """Returns the value that the sampler chooses for a dimension."""
    values = dimension.values
    if isinstance(values, Range):
        draw = trial.suggest_int if values.whole else trial.suggest_float
        return draw(name, values.low, values.high, log=values.log)
    choices = [_choice(each) for each in values]
    return values[choices.index(trial.suggest_categorical(name, choices))]


def _choice(value: Any) -> Any:
    """Returns a value as Optuna stores it: lists as JSON."""
    return json.dumps(value) if isinstance(value, tuple) else value


def sampler(spec: Spec, number: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a trial, seeded by its number, so that no two workers draw alike."""
    seed = spec.seed + number
    kinds = optuna.samplers
    made: dict[str, Callable[[], Any]] = {
        "random": lambda: kinds.RandomSampler(seed),
        # Trials that run elsewhere count as bad ones, so that their neighbourhood is avoided.
        "tpe": lambda: kinds.TPESampler(
            seed=seed, n_startup_trials=min(10, max(3, spec.trials // 3)), constant_liar=True
        ),
        "qmc": lambda: kinds.QMCSampler(seed=spec.seed, scramble=True),  # one sequence for all
        "gp": lambda: kinds.GPSampler(seed=seed),
        "cmaes": lambda: kinds.CmaEsSampler(seed=seed),
        "nsga2": lambda: kinds.NSGAIISampler(seed=seed),
    }
    return made[spec.sampler]()


def pruner(spec: Spec) -> optuna.pruners.BasePruner:
    """Returns the pruner of a sweep, whose resource is steps of training."""
    least = spec.config.eval.every or 1
    made: dict[str | None, Callable[[], Any]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(least, reduction_factor=2),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(least, reduction_factor=2),
    }
    return made[spec.pruner]()


def _plain(content: Any) -> Any:
    """Returns content as it is after a round trip through JSON."""
    return json.loads(json.dumps(content))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]):
    """Yields a line for each setting of a sweep that differs."""
    spaces = [each["space"] for each in (before, now)]
    for key in {**spaces[0], **spaces[1]}:
        old, new = (json.dumps(space.get(key, {}).get("values")) for space in spaces)
        if spaces[0].get(key) != spaces[1].get(key):
            yield f"space, {key}: {old} -> {new}"
    for name in before:
        if name != "space" and before[name] != now.get(name):
            yield f"{name}: {json.dumps(before[name])} -> {json.dumps(now.get(name))}"
