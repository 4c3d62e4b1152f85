"""The options by which a command joins other processes, and the joining.

A command that several processes can run adds the options with `arguments`, and calls `join` before
its first use of JAX.
"""

import os
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtune.cli.commands import UsageError
from jaxtune.cli.options import filled, whole
from jaxtune.display.escapes import shown

# Options of the explicit way to join, and the environment variable that each stands for.
PLACES = {
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--process-count": "JAX_NUM_PROCESSES",
    "--process-index": "JAX_PROCESS_ID",
}
FOUND = "Open MPI, SLURM, TPU slices (GKE and GCE), and Kubernetes Jobs and JobSets"
USAGE = "[--distributed]"  # in the usage line of a command that several processes can run
MOST = 100_000  # processes
TIMEOUT = 300  # seconds


@dataclass(frozen=True)
class Place:
    """The place of this process among those that run a command."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int
    devices: list[int] | None = None  # local devices of this process; None: all that it sees


def arguments(parser: ArgumentParser) -> None:
    """Adds the options of joining other processes to a command's parser."""
    group = parser.add_argument_group(
        "several processes",
        "Start the same command once per process, on every host, and each time with --distributed "
        f"where the processes can find each other ({FOUND}), or else with the next three options.",
    )
    group.add_argument("--distributed", action="store_true", help="find the other processes")
    variables = list(PLACES.values())
    group.add_argument(
        "--coordinator",
        type=filled,
        metavar="HOST:PORT",
        help=f"address of process 0, with a free port on its host (default: ${variables[0]})",
    )
    group.add_argument(
        "--process-count",
        type=lambda text: whole(text, 1, MOST),
        metavar="N",
        help=f"number of processes (default: ${variables[1]})",
    )
    group.add_argument(
        "--process-index",
        type=lambda text: whole(text, 0, MOST - 1),
        metavar="I",
        help=f"index of this process, from 0 to N - 1 (default: ${variables[2]})",
    )
    group.add_argument(
        "--join-timeout",
        type=lambda text: whole(text, 1, 86_400),
        default=TIMEOUT,
        metavar="SECONDS",
        help=f"longest time to wait for the other processes (default: {TIMEOUT})",
    )


def join(options: Namespace) -> None:
    """Joins the other processes if the options ask for it; must precede the first use of JAX.

    Raises UsageError if the options or the environment do not say where the processes are.
    """
    place = place_of(options)
    if place is None:
        return
    import jax

    jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=options.join_timeout,
    )


def place_of(options: Namespace) -> Place | None:
    """Returns the place of this process that the options give; None if it runs alone.

    What the options leave open comes from the environment variables of `PLACES`, and with
    --distributed from the scheduler that JAX finds.

    Raises UsageError if that does not give a complete and valid place.
    """
    given = _given(options)
    if not (options.distributed or any(_option(options, name) is not None for name in PLACES)):
        return None
    devices = None
    missing = [name for name, value in given.items() if value is None]
    if missing and not options.distributed:
        raise UsageError(
            f"{' and '.join(missing)}: missing; {', '.join(PLACES)} are needed together, or "
            f"--distributed where the processes find each other: {FOUND}"
        )
    if missing:
        given, devices = _detected(given, options.join_timeout)
    return _checked(*given.values(), devices)


def _option(options: Namespace, name: str) -> str | int | None:
    return getattr(options, name.removeprefix("--").replace("-", "_"))


def _given(options: Namespace) -> dict[str, str | int | None]:
    """Returns what the options and the environment say, by the names of the options."""
    found = {name: _option(options, name) for name in PLACES}
    for name, variable in PLACES.items():
        text = os.environ.get(variable)
        if found[name] is None and text:
            numeric = name != "--coordinator"
            if numeric and not (text.isdecimal() and len(text) < 8):
                raise UsageError(f"${variable} is {shown(text)}: expected a whole number")
            found[name] = int(text) if numeric else text
    return found


def _detected(
    given: Mapping[str, str | int | None], timeout: int
) -> tuple[dict[str, str | int], list[int] | None]:
    """Adds what the scheduler says about this process to what is given; also its local devices."""
    from jax._src.clusters import ClusterEnv

    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        try:
            *found, devices = ClusterEnv.auto_detect_unset_distributed_params(
                *given.values(), _local_devices(), None, timeout
            )
        except Exception as error:  # whatever the scheduler's environment makes JAX stumble over
            text = " ".join(str(error).split()) or type(error).__name__
            raise UsageError(
                f"--distributed: the other processes cannot be found: {text}; give "
                f"{', '.join(PLACES)} instead"
            ) from None
    if None in found:
        noted = "".join(f" ({' '.join(str(each.message).split())})" for each in notes)
        raise UsageError(
            f"--distributed: no other processes were found{noted}; expected one of {FOUND}, or "
            f"{', '.join(PLACES)}, or the environment variables {', '.join(PLACES.values())}"
        )
    return dict(zip(PLACES, found, strict=True)), devices


def _local_devices() -> list[int] | None:
    text = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    return [int(each) for each in text.split(",")] if text else None


def _checked(address: str, count: int, index: int, devices: list[int] | None) -> Place:
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
        raise UsageError(
            f"--coordinator {shown(address)}: expected HOST:PORT, the address of process 0 with a "
            "port from 1 to 65,535, such as 10.0.0.2:1234"
        )
    if not 0 <= index < count:
        raise UsageError(
            f"--process-index {index}: expected 0 to {count - 1}, as --process-count is {count}"
        )
    return Place(address, count, index, devices)
