"""Checkpoints: config.json, weights, indices and archives, changed in bytes and in nodes."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent, command
from tests.hostile.strategies import apply, edits, file_edits, node_edits, wholes
from tests.hostile.world import PICTURES, World

INDEX = json.dumps(
    {
        "metadata": {"total_size": 1},
        "weight_map": {
            "model.norm.weight": "model-00001-of-00002.safetensors",
            "model.embed_tokens.weight": "model-00002-of-00002.safetensors",
        },
    }
).encode()


def probes(world: World) -> list[Probe]:
    """Returns the classes of checkpoint files."""
    config = (world.base / "config.json").read_bytes()
    weights = (world.base / "model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    header = weights[8 : 8 + size]
    archive = next(PICTURES.glob("*.npz"))
    others = st.sampled_from(["generation_config.json", "tokenizer_config.json"]).flatmap(
        lambda name: st.tuples(st.just(name), file_edits((world.base / name).read_bytes()))
    )
    index = st.tuples(st.just("model.safetensors.index.json"), file_edits(INDEX))
    return [
        Probe(
            "base: config.json",
            1_500,
            st.tuples(st.just("config.json"), file_edits(config)),
            of_file(world),
            chunk=80,
        ),
        Probe(
            "base: config, inspected",
            400,
            node_edits(json.loads(config)),
            of_inspected(world),
            chunk=80,
        ),
        Probe(
            "base: safetensors",
            1_200,
            st.tuples(st.just("model.safetensors"), st.tuples(st.just("bytes"), edits)),
            of_file(world),
            chunk=80,
        ),
        Probe(
            "base: safetensors header",
            1_000,
            node_edits(json.loads(header)),
            of_header(world),
            chunk=80,
        ),
        Probe(
            "base: other files",
            300,
            st.one_of(
                others,
                index,
                st.tuples(st.just("model.safetensors"), st.tuples(st.just("whole"), wholes)),
            ),
            of_file(world),
            chunk=80,
        ),
        Probe("base: npz", 300, edits, of_archive(archive, world), chunk=50),
    ]


def copied(world: World, place: Path) -> Path:
    """Copies the base; its weights are a link until they are written to."""
    folder = place / "base"
    shutil.copytree(world.base, folder, copy_function=os.link)
    return folder


def rewritten(file: Path, content: bytes) -> None:
    """Replaces a file that may be a link to the world's own."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def of_file(world: World):
    def check(value):
        name, change = value
        with world.scratch() as place:
            folder = copied(world, place)
            before = (folder / name).read_bytes() if (folder / name).exists() else INDEX
            if name.endswith("index.json"):
                (folder / "model.safetensors").unlink()
            rewritten(folder / name, apply(before, change))
            loaded(folder)

    return check


def of_header(world: World):
    def check(changes):
        weights = (world.base / "model.safetensors").read_bytes()
        size = int.from_bytes(weights[:8], "little")
        header = apply(weights[8 : 8 + size], ("nodes", changes))
        with world.scratch() as place:
            folder = copied(world, place)
            content = len(header).to_bytes(8, "little") + header + weights[8 + size :]
            rewritten(folder / "model.safetensors", content)
            loaded(folder)

    return check


def of_inspected(world: World):
    def check(changes):
        with world.scratch() as place:
            folder = copied(world, place)
            content = apply((folder / "config.json").read_bytes(), ("nodes", changes))
            rewritten(folder / "config.json", content)
            command("inspect", str(folder), "--workdir", str(place / "out"))

    return check


def of_archive(archive: Path, world: World):
    def check(changes):
        from jaxtune.checkpoint.load import describe

        with world.scratch() as place:
            file = place / archive.name
            file.write_bytes(apply(archive.read_bytes(), ("bytes", changes)))
            described = describe(file)
            with described.stored as stored:
                for name, info in list(stored.tensors.items())[:40]:
                    if stored.read(name).shape != info.shape:
                        raise Silent(f"another shape than its header says: {name}")

    return check


def loaded(folder: Path) -> None:
    """Loads a checkpoint, and its tokenizer; raises `Silent` if a leaf has another shape."""
    import jaxtune
    from jaxtune import tree
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.data.tokenizer import Tokenizer

    model, variables = jaxtune.load(folder)
    shapes = leaf_shapes(model)
    for path, leaf in tree.flatten(variables["params"]).items():
        if np.shape(leaf) != shapes[path]:
            raise Silent(f"a leaf of another shape: {path}")
    Tokenizer.open(folder, today="2026-11-05")
