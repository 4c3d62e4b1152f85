"""Run checkpoints: written in the background, whole or not at all, and verified when read.

Orbax writes and reads the arrays, from and to any number of devices. Beside them it stores the
position: plain JSON with the progress of the run and a checksum of every array.
"""

import contextlib
import json
import logging
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.display.errors import UserError
from jaxtune.workdir import agreement
from jaxtune.workdir.errors import WorkdirError

ITEMS = ("state", "position")
NOT_RAISED = "exception was never retrieved"  # part of a message of asyncio
METADATA = "_CHECKPOINT_METADATA"  # file of Orbax in each checkpoint
STORED = ("leaves", "checksums")  # what is stored beside the position that `save` is given
DAMAGED = "damaged"  # directory beside the checkpoints that unreadable ones are moved to


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read and whose checksums match what was saved."""

    step: int
    state: Any
    position: dict[str, Any]
    damaged: tuple[str, ...]  # one error line for each newer checkpoint that is damaged


@dataclass
class _Kept:
    """Orbax's policy of what is preserved: the newest checkpoints, and the best one."""

    newest: int
    best: int | None = None  # step of the best one

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Returns for each checkpoint, in ascending order of steps, whether it is preserved."""
        old = len(checkpoints) - self.newest
        return [n >= old or each.step == self.best for n, each in enumerate(checkpoints)]


class Checkpoints:
    """The checkpoints in a directory: the newest `keep`, and the best one that `save` is told.

    Without `keep` the directory is opened read-only, which is safe while another run writes to it.
    States are pytrees of arrays. All processes of a run must call the same methods.
    """

    def __init__(self, directory: Path, *, keep: int | None = None):
        self.directory = directory.absolute()
        self._keep = keep
        self._kept = _Kept(keep or 0)
        self._saving: int | None = None
        _silence_orbax()

    @cached_property
    def _manager(self):
        try:
            return self._opened()
        except Exception as error:  # Orbax parses the metadata of every checkpoint that is there
            raise WorkdirError(
                f"{self.directory} cannot be opened: {agreement.short(error)}. A {METADATA} in it "
                "may be damaged: remove that file, without which a checkpoint can be read, and run "
                "the same command again"
            ) from error

    def _opened(self):
        import orbax.checkpoint as orbax

        if self._keep is None:
            options = orbax.CheckpointManagerOptions(
                read_only=True, create=False, save_interval_steps=0
            )
            return orbax.CheckpointManager(self.directory, options=options, item_names=ITEMS)
        options = orbax.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        return orbax.CheckpointManager(self.directory, options=options, item_names=ITEMS)

    @property
    def steps(self) -> list[int]:
        """Steps of the checkpoints on disk, in ascending order."""
        if not self.directory.is_dir():
            return []
        # Orbax's manager would wait for processes that see no such directory.
        found = (each for each in self.directory.iterdir() if each.is_dir())
        return sorted(int(each.name) for each in found if each.name.isdecimal())

    @property
    def begun(self) -> bool:
        """Whether any process finds a checkpoint on disk."""
        return agreement.highest(bool(self.steps)) > 0

    def save(
        self, step: int, state: Any, position: Mapping[str, Any], best: int | None = None
    ) -> None:
        """Copies a state to the host and writes it to disk in the background.

        First waits for the previous checkpoint, and raises the error if writing that one failed;
        an error in writing this one is raised by the next `save` or by `wait`.

        Args:
          step: Step of the run, which names the checkpoint.
          state: Pytree of arrays; random keys are stored as their key data.
          position: JSON content to restore beside the state, such as the loader's position.
          best: Step of the best checkpoint, this or an earlier one, which is kept; or None.
        """
        from orbax.checkpoint import args

        self.wait()
        leaves = _plain(state)
        described = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.items()}
        content = {**position, "leaves": described, "checksums": checksums(leaves)}
        items = args.Composite(
            state=args.StandardSave(tree.unflatten(leaves)),
            position=args.JsonSave({"content": content, "checksum": _checksum(content)}),
        )
        manager, self._saving, self._kept.best = self._manager, step, best
        try:
            manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Blocks until the pending checkpoint is on disk; raises if it could not be written."""
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error
        self._saving = None

    def restore(self, like: Any, step: int | None = None) -> Restored:
        """Returns the newest undamaged checkpoint, or the one of a given step.

        `like` is a pytree with the shapes, dtypes and shardings of the state. A checkpoint that one
        process cannot read is damaged for all of them. Newer checkpoints that are damaged are moved
        to `DAMAGED`, except from a read-only directory.

        Raises:
          WorkdirError: If no checkpoint can be read, or if one was saved with another config.
        """
        if self._keep is not None:
            self._manager  # noqa: B018 (opened now, so that what prevents saving is told now)
        damaged: dict[int, str] = {}
        while (each := self._next(step, damaged)) >= 0:
            read, problem = agreement.together(partial(self._read, each, like))
            if read is not None:  # in all processes, which take part in computing checksums
                _, problem = agreement.together(partial(_verify, *read))
            if problem:
                damaged[each] = f"{self.directory / str(each)}: {problem}"
                continue
            leaves, position = read
            self._put_aside(damaged)
            saved = {name: position[name] for name in position if name not in STORED}
            return Restored(each, _rebuilt(like, leaves), saved, tuple(damaged.values()))
        raise WorkdirError(
            "\n  ".join([f"no checkpoint in {self.directory} can be read:", *damaged.values()])
            + "\nMove the directory away to start from step 0"
        )

    def position(self) -> dict[str, Any] | None:
        """Returns the newest position that can be read, or None if there is none."""
        for step in self.steps[::-1]:
            try:
                return self._position(step)
            except Exception:  # `restore` reports this error
                continue
        return None

    def arrays(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns a checkpoint's arrays by slash path, in host memory, and its position.

        The run may have had other devices and processes.
        """
        position = self._position(step)
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = {
            path: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=where)
            for path, (shape, dtype) in position["leaves"].items()
        }
        found = tree.flatten(self._state(step, tree.unflatten(wanted)))
        return {path: np.asarray(leaf) for path, leaf in found.items()}, position

    def close(self) -> None:
        """Ends the background threads; pending write errors are no longer raised."""
        if "_manager" in vars(self):
            with contextlib.suppress(Exception):
                self._manager.close()

    def _next(self, step: int | None, damaged: Mapping[int, str]) -> int:
        """Returns the newest step that is not known to be damaged, or -1: one for all processes."""
        known = self.steps if step is None else [step]
        return agreement.highest(max((each for each in known if each not in damaged), default=-1))

    def _read(self, step: int, like: Any) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Returns the leaves by slash path, not verified yet, and the position as it is stored."""
        position = self._position(step)
        wanted = _plain(like)
        self._check_leaves(step, position["leaves"], wanted)
        return tree.flatten(self._state(step, tree.unflatten(wanted))), position

    # Orbax's handlers are called directly. Its manager waits for all processes after each restore,
    # where one that found damage does not come.

    def _state(self, step: int, wanted: Any = None) -> Any:
        import orbax.checkpoint as orbax

        item = self.directory / str(step) / "state"
        restore = orbax.args.StandardRestore(wanted)
        return orbax.StandardCheckpointHandler().restore(_present(item), args=restore)

    def _position(self, step: int) -> dict[str, Any]:
        import orbax.checkpoint as orbax

        item = self.directory / str(step) / "position"
        restore = orbax.args.JsonRestore()
        found = orbax.JsonCheckpointHandler().restore(_present(item), args=restore)
        if found["checksum"] != _checksum(found["content"]):
            raise UserError("its position does not match its checksum")
        return found["content"]

    def _check_leaves(self, step: int, saved: Mapping[str, list], wanted: Mapping) -> None:
        """Raises WorkdirError for a checkpoint of another model, adapter or optimiser."""
        described = {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in wanted.items()}
        differing = [
            f"{path}: the checkpoint has {_shape(saved.get(path))}, "
            f"the config needs {_shape(described.get(path))}"
            for path in saved | described
            if saved.get(path) != described.get(path)
        ]
        if differing:
            more = [f"… and {len(differing) - 8} more"] if len(differing) > 8 else []
            raise WorkdirError(
                "\n  ".join(
                    [
                        f"{self.directory / str(step)} was saved with another config:",
                        *differing[:8],
                        *more,
                    ]
                )
            )

    def _put_aside(self, damaged: Mapping[int, str]) -> None:
        """Moves damaged checkpoints away, in the first process; the others wait for that."""
        if self._keep is None or not damaged:
            return

        def move() -> None:
            here = [self.directory / str(step) for step in damaged if jax.process_index() == 0]
            for directory in filter(Path.exists, here):
                target = self.directory.parent / DAMAGED / directory.name
                target.parent.mkdir(exist_ok=True)
                number = 1
                while target.exists():
                    number += 1
                    target = target.with_name(f"{directory.name}-{number}")
                directory.rename(target)

        _, problem = agreement.together(move)
        if problem:
            raise WorkdirError(
                f"a damaged checkpoint could not be moved out of {self.directory}: {problem}"
            )
        if "_manager" in vars(self):
            self._manager.reload()

    def _unwritten(self, error: Exception) -> WorkdirError:
        whole = [step for step in self.steps if step != self._saving]
        last = f"the last complete one is that of step {whole[-1]:,}" if whole else "none is left"
        problem = WorkdirError(
            f"the checkpoint of step {self._saving:,} could not be written to {self.directory}: "
            f"{agreement.short(error)}; {last}"
        )
        self._saving = None
        return problem


def checksums(leaves: Mapping[str, jax.Array]) -> dict[str, int]:
    """Returns a 32-bit checksum for each array.

    It does not depend on how an array is sharded, and the flip of any single bit changes it.
    """
    return {path: int(found) for path, found in _checksums(dict(leaves)).items()}


@jax.jit
def _checksums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(leaf):
        bits = leaf.view(jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")).ravel().astype(jnp.uint32)
        # Sums modulo 2^32 are the same in any order of summation, so on any sharding. An odd factor
        # has an inverse modulo 2^32, so a changed element changes the sum; factors differ by
        # position so that swapped elements change it as well.
        places = 2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1
        return jnp.sum(bits * places, dtype=jnp.uint32)

    return {path: one(leaf) for path, leaf in leaves.items()}


def _plain(state: Any) -> dict[str, Any]:
    """Returns the leaves by slash path, with random keys replaced by their key data."""

    def numbers(leaf):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf)
        found = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(found.shape, found.dtype, sharding=leaf.sharding)

    return {path: numbers(leaf) for path, leaf in tree.flatten(state).items()}


def _rebuilt(like: Any, leaves: Mapping[str, jax.Array]) -> Any:
    """Inverse of `_plain`: a state with the structure of `like` from leaves by slash path."""

    def leaf(path, wanted):
        if jnp.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaves[path], impl=wanted.dtype)
        return leaves[path]

    return tree.map_with_path(leaf, like)


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _shape(described: list | None) -> str:
    return f"{described[1]}{described[0]}" if described else "nothing"


def _present(item: Path) -> Any:
    """Returns the path of a part of a checkpoint as Orbax takes it; raises if it is missing."""
    from etils import epath

    if not item.is_dir():
        raise FileNotFoundError(f"{item.name} is missing")
    return epath.Path(item)


def _verify(leaves: Mapping[str, jax.Array], position: Mapping[str, Any]) -> None:
    """Raises ValueError if a leaf does not match the checksum that is stored with the position."""
    found = checksums(leaves)  # of all in one program, as when they were saved
    wrong = [path for path, expected in position["checksums"].items() if found[path] != expected]
    if wrong:
        raise UserError(f"{wrong[0]} does not match its checksum")


@cache
def _silence_orbax() -> None:
    """Drops what Orbax reports besides raising an error.

    It logs the same error several times, with tracebacks; after a failure TensorStore calls back an
    event loop that Orbax has closed, which Python reports as an ignored exception; and asyncio logs
    the errors of the writes that failed after the first one.
    """
    logging.getLogger("asyncio").addFilter(lambda record: NOT_RAISED not in record.getMessage())
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in Path(record.pathname).parts)
    before = sys.unraisablehook

    def report(ignored: Any) -> None:
        if str(ignored.exc_value) != "Event loop is closed":
            before(ignored)

    sys.unraisablehook = report
