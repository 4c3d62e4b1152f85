"""What a run is planned for: described chips by name, or the devices of this machine."""

import contextlib
import difflib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jaxtune.display.errors import UserError
from jaxtune.display.escapes import MOST, shown
from jaxtune.runs.plan.chips import Chip, Gpu, Tpu
from jaxtune.runs.plan.published import CHIPS, chip_of

# libtpu looks for a TPU VM's metadata and takes a lock, neither of which compiling needs.
TPU_SETTINGS = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
CUDA_SETTINGS = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # there may be no driver
CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True)
class Target:
    """Devices that a run is planned for.

    Attributes:
      name: What was asked for, such as `v5e:2x4`; "" for the devices of this machine.
      title: Name and number of the devices in messages, such as `8 × TPU v5e`.
      chip: Published figures of one device; None if there are none.
      count: Number of devices.
      limit_bytes: Bytes that a program may take on one device; None if the backend does not tell.
        For a described TPU it is the limit of libtpu's compiler; for a described GPU, see
        `Gpu.limit`; for devices of this machine, what their allocator may take; for CPUs, the
        memory of the machine or of the control group, whichever is less, divided by their number.
    """

    name: str
    title: str
    chip: Chip | None
    count: int
    limit_bytes: int | None
    _describe: Callable[[], list] = field(repr=False, compare=False)

    def devices(self) -> list:
        """Returns the devices, which for a described chip can be compiled for but not be used.

        Raises:
          UserError: If the compiler of the chip is not installed or does not start.
        """
        return self._describe()


def target(text: str) -> Target:
    """Returns the target that `NAME` or `NAME:TOPOLOGY` describes; does not import JAX.

    Args:
      text: The name of a chip in `CHIPS`, and after a colon how many of them: for TPUs a topology
        such as `2x4`, for GPUs the number in one host; without it, one chip.
    """
    name, colon, topology = text.strip().lower().partition(":")
    if name not in CHIPS:
        raise UserError(
            f"{shown(text)} is not a target{hint(name, CHIPS)}; choose from {', '.join(CHIPS)}, "
            "with a topology after a colon for several chips, such as v5e:2x4 or h100:8"
        )
    chip = CHIPS[name]
    count, describe = (_tpus if isinstance(chip, Tpu) else _gpus)(chip, topology, bool(colon))
    title = f"{count} × {chip.title}" if count > 1 else chip.title
    return Target(f"{name}{colon}{topology}", title, chip, count, chip.limit(), describe)


def hint(name: str, known: Iterable[str], form: str = "{}") -> str:
    """Returns ` (did you mean …?)` with the known name nearest to this one, or ""."""
    begun = [each for each in known if name and each.startswith(name)]
    near = begun or difflib.get_close_matches(name[:MOST], known, 1)
    return f" (did you mean {form.format(near[0])}?)" if near else ""


def _tpus(chip: Tpu, topology: str, given: bool) -> tuple[int, Callable[[], list]]:
    """Returns the number of chips in a topology, and what describes them."""
    if not given:
        topology = chip.slices[0]
    if topology not in chip.slices:
        alike = [each for each in chip.slices if number(each) == number(topology)]
        near = hint(alike[0] if alike else topology, chip.slices, f"{chip.name}:{{}}")
        raise UserError(
            f"{chip.title} has no topology {shown(topology)}{near}; choose from "
            f"{', '.join(chip.slices)}"
        )
    return number(topology), partial(described_tpus, chip, topology)


def number(topology: str) -> int:
    """Returns the number of chips in a topology such as `2x4` or `8`; 0 if it is none."""
    if not re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4}){0,2}", topology):
        return 0
    return math.prod(map(int, topology.split("x")))


def _gpus(chip: Gpu, topology: str, given: bool) -> tuple[int, Callable[[], list]]:
    """Returns the number of GPUs of one host, and what describes them."""
    count = number(topology) if given else 1
    if "x" in topology or not 0 < count <= chip.most:
        raise UserError(
            f"{chip.title}: found {shown(topology)} after the colon, expected the number of GPUs "
            f"in one host, {f'1 to {chip.most}' if chip.most > 1 else 'which is 1'}"
        )
    return count, partial(described_gpus, chip, count)


def described_tpus(chip: Tpu, topology: str) -> list:
    """Returns descriptions of the chips of a topology, from libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        version = importlib.metadata.version("jax")  # names the libtpu that it can work with
        raise UserError(missing(chip, "libtpu", f"'jax[tpu]=={version}'"))
    more: dict[str, Any] = {"chip_config_name": chip.config} if chip.config else {}
    if number(topology) == 1:  # by default a host has four chips
        more["chips_per_host_bounds"] = [1, 1, 1]
    return _described(
        chip, TPU_SETTINGS, platform="tpu", topology_name=f"{chip.name}:{topology}", **more
    )


def described_gpus(chip: Gpu, count: int) -> list:
    """Returns descriptions of the GPUs of one host, from XLA's compiler for NVIDIA."""
    if not any(importlib.util.find_spec(name) for name in CUDA_PLUGINS):
        version = importlib.metadata.version("jax")
        package = f"'jax-cuda12-plugin[with-cuda]=={version}'"
        raise UserError(missing(chip, "jax-cuda12-plugin", package))
    # slices × hosts × devices
    topology = dict(topology_name="", topology=f"1x1x{count}", target_config=chip.proto())
    return _described(chip, CUDA_SETTINGS, platform="cuda", **topology)


def missing(chip: Chip, package: str, install: str) -> str:
    """Returns the message that names the package with a chip's compiler."""
    return (
        f"the compiler for {chip.title} is not installed; it comes with the package {package}: "
        f"pip install {install}"
    )


def _described(chip: Chip, settings: Mapping[str, str], **topology: Any) -> list:
    """Returns device descriptions from a compiler, which sees `settings` in the environment."""
    from jax.experimental import topologies

    with _environment(settings):
        try:
            return list(topologies.get_topology_desc(**topology).devices)
        except Exception as problem:  # plugins raise errors of many kinds
            raise UserError(
                f"the compiler for {chip.title} did not start; it needs the versions that belong "
                f"to jax {importlib.metadata.version('jax')}: {problem}"
            ) from problem


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set yet, and removes them afterwards."""
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def compile_only() -> None:
    """Keeps JAX from starting accelerators of this machine, which described chips do not need.

    It works before the first use of JAX only, and does not overrule `JAX_PLATFORMS`.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")


def at_hand() -> Target:
    """Returns the devices of this machine, and in a distributed run of all its processes."""
    import jax

    device, count = jax.local_devices()[0], jax.device_count()
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None and device.platform == "cpu":
        limit = machine_memory() // jax.local_device_count()
    title = f"{count} × {device.device_kind}" if count > 1 else device.device_kind
    return Target("", title, chip_of(device.device_kind), count, limit, jax.devices)


def machine_memory(root: Path = Path("/")) -> int:
    """Returns the bytes of memory that this process may take: the machine's or its cgroup's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [limit for path in _cgroup_files(root) if (limit := _number(path)) is not None]
    return min([physical, *limits])


def _cgroup_files(root: Path) -> Iterator[Path]:
    """Yields files that may limit the memory of this process's control groups, v2 and v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        file = "memory.limit_in_bytes" if controllers else "memory.max"
        group = Path(place.lstrip("/"))
        # A limit of a parent group holds too; within a container, only the top may be mounted.
        yield from (top / each / file for each in (group, *group.parents))


def _number(path: Path) -> int | None:
    """Returns the limit in a file; None if there is no such file or no limit in it."""
    try:
        limit = int(path.read_text())
    except (OSError, ValueError):  # "max" means that there is no limit
        return None
    return limit if 0 < limit < UNLIMITED else None
