"""The options by which a command joins other processes, and the joining.

A command that several processes can run adds the options with `arguments`, and calls `join` before
its first use of JAX.
"""

import os
import signal
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtune.cli.commands import UsageError
from jaxtune.cli.options import filled, whole
from jaxtune.display.escapes import shown
from jaxtune.runs import signals

if TYPE_CHECKING:
    from jaxtune.cli.peers.group import Fate, Group

# Options of the explicit way to join, and the environment variable that each stands for.
PLACES = {
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--process-count": "JAX_NUM_PROCESSES",
    "--process-index": "JAX_PROCESS_ID",
}
FOUND = "Open MPI, SLURM, TPU slices (GKE and GCE), and Kubernetes Jobs and JobSets"
# In the usage line of a command that several processes can run.
USAGE = "[--distributed | --coordinator HOST:PORT …]"
MOST = 100_000  # processes
TIMEOUT = 300  # seconds
NEVER = 10**6  # seconds
UNPROXIED = "no_grpc_proxy"  # variable with the hosts that gRPC reaches without a proxy
AGAIN = "Run the same command again for each process"


@dataclass(frozen=True)
class Place:
    """The place of this process among those that run a command."""

    coordinator: str  # HOST:PORT of process 0
    count: int
    index: int
    devices: list[int] | None = None  # local devices of this process; None: all that it sees


_group: "Group | None" = None  # once this process has joined others


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


def join(
    options: Namespace,
    advice: Callable[[], str] = lambda: AGAIN,
    *,
    preemptible: bool = False,
) -> None:
    """Joins the other processes if the options ask for it; must precede the first use of JAX.

    From then on, each process ends if another one is lost or fails.

    Args:
      options: The options of the command.
      advice: Returns what to do when another process is lost, which ends the message about it.
      preemptible: Whether the command asks JAX if a process got SIGTERM, and stops in all of them.
        Otherwise SIGTERM ends this process at once, and thereby the others.

    Raises:
      UsageError: If the options or the environment do not say where the processes are.
      JoinError: If the processes do not find each other in time.
    """
    global _group
    place = place_of(options)
    if place is None:
        return
    from jaxtune.cli.peers.group import message, say
    from jaxtune.cli.peers.hub import Hub
    from jaxtune.cli.peers.member import Peer

    def end(fate: "Fate") -> None:
        say(message(fate, place.count, advice()))
        signals.end(fate.code)

    _group = (Peer if place.index else Hub)(place.coordinator, place.index, place.count, end)
    address = _group.join(options.join_timeout)
    signals.before_end(_ended)
    _initialize(place, address, preemptible)


def fail(error: BaseException, code: int, text: str) -> None:
    """Tells the other processes, if there are any, that this one ends by an error.

    Does not return if another process is to blame: the message is then about that one.
    """
    if _group:
        _group.failing(error, code, text)


def leave() -> None:
    """Waits for the other processes, if there are any, to end in order as this one does."""
    if _group:
        import jax

        jax.distributed.shutdown()
        _group.leave()


def joined() -> bool:
    """Whether this process has joined others."""
    return _group is not None


def _ended(code: int) -> None:
    """Tells the others of a signal that ends this process."""
    if not _group.over:
        name = signal.Signals(code - 128).name if code > 128 else f"exit code {code}"
        _group.fail(code, f"it was stopped by {name}")


def _initialize(place: Place, address: str, preemptible: bool) -> None:
    """Lets JAX join, by a service on this host; all processes are known to be there.

    `Group` notices lost ones, so JAX's own time limits, at which it aborts, are never reached.
    """
    import jax

    kept = os.environ.get(UNPROXIED) or os.environ.get("no_proxy")
    os.environ[UNPROXIED] = ",".join(filter(None, ["127.0.0.1", kept]))
    jax.config.update("jax_check_proxy_envs", False)
    jax.config.update("jax_enable_preemption_service", preemptible)
    jax.distributed.initialize(
        address,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=NEVER,
        heartbeat_timeout_seconds=NEVER,
        shutdown_timeout_seconds=NEVER,
        coordinator_bind_address=address,
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
