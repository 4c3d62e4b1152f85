"""Files of a run's directory: changed, cut, removed, replaced by what is no file."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.hostile.adapters import tensors
from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent, command
from tests.hostile.strategies import apply, file_edits
from tests.hostile.world import HARDEST, World

SIDE = ("metrics.jsonl", "config.json", "run.json", "summary.json", "export/adapter/export.json")
WAYS = ("remove", "directory", "dangling", "fifo")


def probes(world: World) -> list[Probe]:
    """Returns the classes of a workdir's files."""
    side = st.sampled_from(SIDE).flatmap(lambda name: changes(world.run, name))
    saved = [
        str(path.relative_to(world.run))
        for path in sorted((world.run / "checkpoints").rglob("*"))
        if path.is_file()
    ]
    inner = st.lists(
        st.sampled_from(saved).flatmap(lambda name: changes(world.run, name, WAYS[:3])),
        min_size=1,
        max_size=2,
    )
    weights = tensors(world.base / "model.safetensors")
    leaves = sorted(name for name, value in weights.items() if value.any())
    return [
        Probe("workdir: side files opened", 1_500, side, of_opened(world), chunk=100),
        Probe("workdir: side files resumed", 40, side, of_resumed(world), chunk=20, patience=120),
        Probe(
            "workdir: another start",
            12,
            st.sampled_from([*STANDING, *leaves]),
            of_another_start(world),
            chunk=12,
            patience=120,
        ),
        Probe("workdir: checkpoints", 300, inner, of_checkpoints(world), chunk=40),
    ]


# What a run stands on besides its weights, and what is replaced in it between two starts.
STANDING = {
    "base/tokenizer.json": (b"[", b"[ "),
    "base/tokenizer_config.json": (b"user", b"USER"),
    "base/config.json": (b"}", b',"added":1}'),
    "rows.jsonl": (b"sea", b"SEA"),
}


def replaced(place: Path, name: str) -> None:
    """Changes a file that a run stands on; any other name is that of a tensor, which is negated."""
    if name in STANDING:
        content = (place / name).read_bytes()
        (place / name).write_bytes(content.replace(*STANDING[name], 1))
        return
    from safetensors.numpy import save_file

    found = tensors(place / "base/model.safetensors")
    save_file(found | {name: -found[name]}, place / "base/model.safetensors", {"format": "pt"})


def of_another_start(world: World):
    """Changes what a run stands on between two starts, which the second one must refuse."""

    def check(name):
        with world.scratch() as place:
            shutil.copytree(world.base, place / "base")
            shutil.copy(world.rows, place / "rows.jsonl")
            text = HARDEST.format(steps=2, base=str(place / "base"), rows=str(place / "rows.jsonl"))
            (place / "config.py").write_text(text)
            command("train", "--config", str(place / "config.py"), "--workdir", str(place / "run"))
            replaced(place, name)
            command("train", "--config", str(place / "config.py"), "--workdir", str(place / "run"))
            raise Silent(f"a run continued on another file: {name}")

    return check


def changes(folder: Path, name: str, ways: Sequence[str] = WAYS) -> st.SearchStrategy:
    """Returns a strategy of (name, change or a way in which it is not there)."""
    edits = file_edits((folder / name).read_bytes())
    return st.tuples(st.just(name), st.one_of(edits, edits, st.sampled_from(ways)))


def changed(file: Path, change) -> None:
    """Applies a change to a file."""
    content = file.read_bytes() if file.is_file() else b"{}"
    if file.is_dir():
        return
    file.unlink(missing_ok=True)
    if change == "directory":
        file.mkdir()
    elif change == "dangling":
        file.symlink_to(file.parent / "gone")
    elif change == "fifo":
        os.mkfifo(file)
    elif change != "remove":
        file.write_bytes(apply(content, change))


def copied(world: World, place: Path) -> Path:
    """Copies the run's directory; checkpoints are links, as nothing writes into their files."""
    folder = place / "run"

    def copy(source, target):
        checkpoint = "checkpoints" in Path(source).parts
        (os.link if checkpoint else shutil.copy2)(source, target)

    shutil.copytree(world.run, folder, copy_function=copy)
    return folder


def of_opened(world: World):
    """Opens the run as `fit` does before it reads weights, and its journal."""

    def check(value):
        from jaxtune.config.load import load, resolved
        from jaxtune.workdir.directory import begun, run_directory
        from jaxtune.workdir.journal import journal

        name, change = value
        config = load(world.config)
        settings = resolved(config)
        with world.scratch() as place:
            folder = copied(world, place)
            changed(folder / name, change)
            begun(folder)
            with (
                run_directory(folder, settings) as directory,
                journal(directory, config.log, settings, 6, True),
            ):
                pass

    return check


def of_resumed(world: World):
    def check(value):
        name, change = value
        with world.scratch() as place:
            folder = copied(world, place)
            changed(folder / name, change)
            command("train", "--config", str(world.config), "--workdir", str(folder))
            same(world, folder, but=name)

    return check


def same(world: World, folder: Path, but: str) -> None:
    """Raises `Silent` if a run has other results than the undisturbed one, but for one file."""
    for name in ("metrics.jsonl", "export/adapter/adapter_model.safetensors"):
        if name != but and (folder / name).read_bytes() != (world.run / name).read_bytes():
            raise Silent(f"a resumed run with other results: {name}")


def of_checkpoints(world: World):
    """Restores the newest checkpoint that can be read; it must be one that was saved."""
    known: dict = {}

    def check(value):
        from jaxtune.workdir.checkpoints import Checkpoints

        if not known:
            whole = Checkpoints(world.run / "checkpoints")
            known.update({step: whole.arrays(step) for step in whole.steps})
            whole.close()
        with world.scratch() as place:
            folder = copied(world, place)
            for name, change in value:
                changed(folder / name, change)
            found = Checkpoints(folder / "checkpoints", keep=2)
            try:
                step = restored(found, known)
            finally:
                found.close()
            assert step in known

    return check


def restored(found, known: dict) -> int:
    """Restores, and raises `Silent` unless every array is as it was saved."""
    import jax
    import jax.numpy as jnp

    from jaxtune import tree

    arrays = next(iter(known.values()))[0]
    like = tree.unflatten(
        {
            path: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=jnp.zeros(()).sharding)
            for path, array in arrays.items()
        }
    )
    result = found.restore(like)
    for path, leaf in tree.flatten(result.state).items():
        if not np.array_equal(np.asarray(leaf), known[result.step][0][path], equal_nan=True):
            raise Silent(f"a damaged checkpoint was restored: {path} of step {result.step}")
    return result.step
