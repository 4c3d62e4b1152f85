"""All classes of inputs that run within a worker process."""

from tests.hostile import adapters, bases, commands, configs, python, rows, tokenizers, workdirs
from tests.hostile.explore import Probe
from tests.hostile.world import World

MODULES = (configs, commands, rows, tokenizers, bases, adapters, python, workdirs)


def all_probes(world: World) -> list[Probe]:
    """Returns the classes of every module."""
    return [probe for module in MODULES for probe in module.probes(world)]
