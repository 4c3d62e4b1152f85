"""Configs of trials, and what trials have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtune.config.load import resolved
from jaxtune.config.schema import FIELDS, SCHEMA, Config
from jaxtune.runs.plan.plan import changed
from jaxtune.runs.sweep.space import Overrides
from jaxtune.training.optim import ALIKE

# Fields that are arrays in the train state: trials that differ in these share compiled programs.
NUMBERS = (
    "seed",
    "optim.lr",
    "optim.weight_decay",
    "optim.b1",
    "optim.b2",
    "optim.epsilon",
    "optim.momentum",
    "optim.clip_norm",
    "schedule.warmup",
    "schedule.decay",
    "trainable.alpha",
    "trainable.dropout",
)
UNCOMPILED = ("checkpoint", "log", "hub")  # sections that no program depends on
RANK = "trainable.rank"
LENGTHS = {"steps": "epochs", "epochs": "steps"}  # two ways to set the length of a run


def overridden(config: Config, overrides: Overrides) -> Config:
    """Returns a config with overrides, in which fields that are no longer read have defaults.

    For example, without LoRA the config's rank is dropped. Raises ConfigError for values that
    cannot be combined.
    """
    other = {LENGTHS[key]: None for key in overrides if key in LENGTHS}
    dropped = {
        key: known.default
        for key, known in FIELDS.items()
        if "when" in known.metadata and key not in overrides and _unread(key, overrides)
    }
    return changed(config, {**other, **dropped, **overrides})


def _size(config: Config) -> tuple[int, float]:
    return config.trainable.rank, config.trainable.dropout


def _unread(key: str, overrides: Overrides) -> bool:
    name, values = FIELDS[key].metadata["when"]
    condition = f"{key.rpartition('.')[0]}.{name}"
    return condition in overrides and overrides[condition] not in values


def settings(config: Config) -> dict:
    """Returns the fields that differ from their defaults, as nested dictionaries."""
    found: dict = {}
    values = resolved(config)
    for key in SCHEMA.given(config, *FIELDS):
        *sections, name = key.split(".")
        place, source = found, values
        for section in sections:
            place, source = place.setdefault(section, {}), source[section]
        place[name] = source[name]
    return found


def program_of(config: Config) -> Config:
    """Returns a config with defaults for all that its programs do not depend on.

    Runs whose configs are then equal share their compiled programs.
    """
    sections = {name: type(getattr(config, name))() for name in UNCOMPILED}
    return replace(changed(config, {key: FIELDS[key].default for key in NUMBERS}), **sections)


def together_as(config: Config) -> Config | None:
    """Returns what the configs of trials that can train together have in common.

    Adapters of different ranks are filled up to the highest. It is None for a config that changes
    its base, and so shares it with no other.
    """
    if not shares_base(config):
        return None
    program = program_of(config)
    ranks = config.optim.name in ALIKE and not config.trainable.adapter
    return changed(program, {RANK: FIELDS[RANK].default}) if ranks else program


def shares_base(config: Config) -> bool:
    """Returns whether a run leaves the weights of its base as they were loaded."""
    return config.trainable.kind == "lora" and config.trainable.init == "default"


@dataclass(frozen=True)
class Group:
    """Trials that share their programs, and of their configs the one that takes the most memory.

    It has the highest rank, and dropout if a config of this rank has it.
    """

    config: Config
    trials: tuple[int, ...]
    together: bool  # whether they can train together
    seeds: bool  # whether their seeds differ, so that each has batches of its own


def groups(configs: Sequence[Config], together: bool = True) -> list[Group]:
    """Returns trials grouped by the programs that they share, trained together or one by one."""
    found: dict[tuple, list[int]] = {}
    for number, config in enumerate(configs):
        alike = together_as(config) if together else None
        key = (alike is not None, alike or program_of(config))
        found.setdefault(key, []).append(number)
    return [
        Group(
            max((configs[number] for number in numbers), key=_size),
            tuple(numbers),
            can and len(numbers) > 1,
            len({configs[number].seed for number in numbers}) > 1,
        )
        for (can, _), numbers in found.items()
    ]


def bases(configs: Sequence[Config]) -> int:
    """Returns how many times the trials' bases are loaded, one after another in one process."""
    loads, held = 0, None
    for config in configs:
        wanted = config.model if shares_base(config) else None
        loads += wanted is None or wanted != held
        held = wanted
    return loads
