"""What a process sees of the devices of a command, and a sum that all of them take part in."""

import importlib.metadata
import json
import platform
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxtune
from jaxtune.display.columns import labelled, size_text
from jaxtune.display.errors import UserError
from jaxtune.display.escapes import plural

AXIS = "all"
PACKAGES = (
    "jax",
    "jaxlib",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "jax-rocm60-plugin",
    "jax-rocm7-plugin",
    "libtpu",
)
INSTALL = "pip install -e '.[cuda12]', '.[cuda13]' or '.[tpu]'"
APART = (
    "check that every host reaches the others on all ports, and that all run the same versions; "
    "on NVIDIA GPUs, NCCL_DEBUG=INFO shows what their connections do"
)


class DevicesError(UserError):
    """Devices that are not those expected, or that do not reach each other."""


@dataclass(frozen=True)
class Kind:
    """Devices of one process that are alike."""

    platform: str  # as JAX names it: gpu, tpu or cpu
    kind: str  # the model, as its driver names it
    count: int
    memory: int | None  # bytes of each that JAX may use; None: not reported


@dataclass(frozen=True)
class View:
    """What one process sees."""

    process: int
    processes: int
    host: str
    local: tuple[Kind, ...]
    total: int  # devices of all processes
    versions: dict[str, str]


def seen() -> View:
    """Returns what this process sees; raises DevicesError if JAX finds no device."""
    try:
        local, total = jax.local_devices(), jax.device_count()
    except (RuntimeError, AssertionError) as error:  # without a text if a plugin is not installed
        text = " ".join(str(error).split())
        raise DevicesError(
            f"on {socket.gethostname()}, JAX cannot list the devices{text and f': {text}'}. Check "
            f"the driver, JAX_PLATFORMS if it is set, and that JAX was installed: {INSTALL}"
        ) from None
    counted = Counter((each.platform, each.device_kind, _memory(each)) for each in local)
    return View(
        process=jax.process_index(),
        processes=jax.process_count(),
        host=socket.gethostname(),
        local=tuple(Kind(name, kind, n, memory) for (name, kind, memory), n in counted.items()),
        total=total,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Returns the versions of jaxtune, Python, JAX and those of its plugins that are installed."""
    found = {"jaxtune": jaxtune.__version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions_text() -> str:
    """Returns the lines with the versions, which can be told before any device is used."""
    return "\n".join(labelled({"versions": ", ".join(map(" ".join, versions().items()))}))


def text(view: View) -> str:
    """Returns the lines with a process and its devices."""
    here = "; ".join(_described(kind) for kind in view.local) or "none"
    lines = {
        "process": f"{view.process} of {view.processes}, on {view.host}",
        "devices": f"{here}; {view.total} in all processes",
    }
    return "\n".join(labelled(lines))


def sum_text(view: View, total: int) -> str:
    """Returns the line that a process prints after the sum, which is as it should be."""
    (line,) = labelled({"sum": f"{total:,} over {plural(view.total, 'device')}, as expected"})
    return f"{line} (process {view.process} of {view.processes})"


def check(view: View, expected: int | None) -> None:
    """Raises DevicesError if not as many devices were found as expected.

    The CPU counts as a device only where JAX_PLATFORMS names it: otherwise JAX has fallen back to
    it, as it found no accelerator.
    """
    if expected is None:
        return
    if _platforms()[0] != "cpu" and any(kind.platform == "cpu" for kind in view.local):
        raise DevicesError(
            f"process {view.process} on {view.host} finds no accelerator, only its CPU; expected "
            f"{plural(expected, 'device')} in all. Check the driver, and that JAX was installed "
            f"for it: {INSTALL}"
        )
    if view.total != expected:
        own = sum(kind.count for kind in view.local)
        processes = "one process" if view.processes == 1 else f"{view.processes:,} processes"
        raise DevicesError(
            f"found {plural(view.total, 'device')} in {processes}, {own} of them in process "
            f"{view.process} on {view.host}; expected {expected}. Start the command on every host, "
            "with the options of several processes, and see that each has the devices that it "
            "should"
        )


def summed(seconds: float) -> int:
    """Returns the sum of 1, 2, … over all devices, each of which holds one of these numbers.

    Raises DevicesError if it is wrong, fails, or takes longer than `seconds`.
    """
    total = within(seconds, _sum)
    count = jax.device_count()
    expected = count * (count + 1) // 2
    if total != expected:
        raise DevicesError(
            f"the sum over {plural(count, 'device')} is {total}, expected {expected}: a device or "
            "a connection computes wrongly"
        )
    return total


def within(seconds: float, action: Callable[[], int]) -> int:
    """Returns the result of work that devices take part in; raises DevicesError on its failure."""
    result: list[int] = []
    failure: list[Exception] = []

    def work() -> None:
        try:
            result.append(action())
        except Exception as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="sum", daemon=True)
    thread.start()
    thread.join(seconds)
    what = f"the sum over {plural(jax.device_count(), 'device')}"
    if failure:
        short = " ".join(str(failure[0]).split())[:300]
        raise DevicesError(f"{what} failed: {short}; {APART}") from failure[0]
    if not result:
        raise DevicesError(f"{what} has not ended within {seconds:.0f} seconds; {APART}")
    return result[0]


def everyones(view: View) -> list[dict[str, Any]]:
    """Returns the views of all processes, in every process; must follow a sum that worked."""
    content = np.frombuffer(json.dumps(asdict(view)).encode(), np.uint8)
    if view.processes == 1:
        return [json.loads(content.tobytes())]
    sizes = multihost_utils.process_allgather(np.asarray(content.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: content.size] = content
    gathered = np.asarray(multihost_utils.process_allgather(padded))
    return [
        json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes.tolist(), strict=True)
    ]


def _sum() -> int:
    devices = np.asarray(jax.devices())
    everywhere = Mesh(devices, AXIS)
    numbers = np.arange(1, devices.size + 1, dtype=np.int32)
    each = jax.make_array_from_callback(
        numbers.shape,
        NamedSharding(everywhere, PartitionSpec(AXIS)),
        lambda index: numbers[index],
    )
    total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(everywhere, PartitionSpec()))
    return int(total(each).addressable_data(0))


def _platforms() -> list[str]:
    return (jax.config.jax_platforms or "").split(",")


def _memory(device: jax.Device) -> int | None:
    return (device.memory_stats() or {}).get("bytes_limit")


def _described(kind: Kind) -> str:
    name = kind.kind if kind.platform in kind.kind.lower() else f"{kind.kind} ({kind.platform})"
    size = f" with {size_text(kind.memory)} for JAX{' each' if kind.count > 1 else ''}"
    return f"{kind.count} × {name}{size if kind.memory else ''}"
