"""Adapters: their settings, weights and reports changed, and the base under them changed."""

import json
import shutil
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.hostile.bases import copied, rewritten
from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent
from tests.hostile.strategies import ODD, apply, edits, file_edits, junk, node_edits
from tests.hostile.world import World

CONFIG, WEIGHTS, REPORT = "adapter_config.json", "adapter_model.safetensors", "export.json"
PATTERNS = ["(.*)*x", "(a+)+$", "(.*.*)*y", "(?=a)*", "[", "(", "(?P<n>a)" * 200, ".*" * 50 + "x"]
PATTERNS += ["^(([a-z.0-9])+.)+[A-Z]([a-z.0-9])+$", "q_proj", ".*q_proj", "model" + "(.*)*" * 20]
BAD = [float("nan"), float("inf"), float("-inf"), 3e38, 1e-45]


def probes(world: World) -> list[Probe]:
    """Returns the classes of adapters."""
    plain = world.place / "adapter"
    document = json.loads((plain / CONFIG).read_bytes())
    pattern = st.sampled_from(PATTERNS) | st.sampled_from(ODD)
    regexes = st.fixed_dictionaries(
        {},
        optional={
            "target_modules": pattern | st.lists(pattern, max_size=3),
            "exclude_modules": pattern | st.lists(pattern, max_size=3),
            "rank_pattern": st.dictionaries(pattern, st.integers(-1, 9) | junk, max_size=3),
            "alpha_pattern": st.dictionaries(pattern, st.floats() | junk, max_size=3),
            "layers_pattern": pattern | junk,
            "layers_to_transform": junk | st.lists(st.integers(-2, 5), max_size=4),
        },
    )
    names = sorted(tensors(plain / WEIGHTS))
    kinds = st.sampled_from(["nan", "transposed", "cut", "dropped", "renamed", "doubled", "dtype"])
    values = st.tuples(st.sampled_from(names), kinds, st.sampled_from(BAD), st.floats(0, 0.999))
    leaves = sorted(tensors(world.base / "model.safetensors"))
    negated = st.tuples(
        st.sampled_from(leaves),
        st.sampled_from([None, "nf4", "int8"]),
        st.sampled_from(["-", "0", "2"]),
    )
    exported = st.sampled_from([CONFIG, WEIGHTS, REPORT]).flatmap(
        lambda name: st.tuples(st.just(name), file_edits((world.adapter / name).read_bytes()))
    )
    return [
        Probe("adapters: settings", 900, node_edits(document), of_settings(world), chunk=60),
        Probe("adapters: patterns", 500, regexes, of_patterns(world), chunk=40),
        Probe("adapters: bytes", 500, edits, of_bytes(world), chunk=60),
        Probe("adapters: values", 500, values, of_values(world), chunk=60),
        Probe("adapters: another base", 250, negated, of_base(world), chunk=25),
        Probe("adapters: exports", 400, exported, of_export(world), chunk=60),
    ]


def write(world: World) -> None:
    """Writes an adapter of the world's base as `save_adapter` does, with effects everywhere."""
    import jax

    import jaxtune
    from jaxtune.adapters.lora import Lora

    _, variables = jaxtune.load(world.base)
    variables = jaxtune.add_lora(variables, rank=2, alpha=4, key=jax.random.key(1))

    def moved(each):
        return each.replace(b=jax.random.normal(jax.random.key(2), each.b.shape) * 0.02)

    lora = jax.tree.map(moved, variables["lora"], is_leaf=lambda each: isinstance(each, Lora))
    jaxtune.save_adapter({**variables, "lora": lora}, world.place / "adapter", world.base)


def tensors(file: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors file."""
    from safetensors.numpy import load_file

    return load_file(file)


def metadata(file: Path) -> dict[str, str]:
    """Returns the metadata of a safetensors file, which `load_file` leaves out."""
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__", {})


def load(world: World, folder: Path) -> dict:
    """Loads an adapter into the world's base; raises `Silent` if the result is not finite."""
    import jax

    import jaxtune

    model, variables = world.loaded
    found = jaxtune.load_adapter(model, variables, folder)
    for leaf in jax.tree.leaves(found["lora"]):
        if not np.isfinite(np.asarray(leaf)).all():
            raise Silent("an adapter that is not finite")
    return found


def of_settings(world: World):
    def check(changes):
        with world.scratch() as place:
            folder = shutil.copytree(world.place / "adapter", place / "adapter")
            content = (folder / CONFIG).read_bytes()
            (folder / CONFIG).write_bytes(apply(content, ("nodes", changes)))
            load(world, folder)

    return check


def of_patterns(world: World):
    def check(given):
        with world.scratch() as place:
            folder = shutil.copytree(world.place / "adapter", place / "adapter")
            settings = json.loads((folder / CONFIG).read_bytes()) | given
            (folder / CONFIG).write_text(json.dumps(settings))
            load(world, folder)

    return check


def of_bytes(world: World):
    def check(changes):
        with world.scratch() as place:
            folder = shutil.copytree(world.place / "adapter", place / "adapter")
            content = (folder / WEIGHTS).read_bytes()
            (folder / WEIGHTS).write_bytes(apply(content, ("bytes", changes)))
            load(world, folder)

    return check


def of_values(world: World):
    def check(value):
        from safetensors.numpy import save_file

        name, kind, number, where = value
        with world.scratch() as place:
            folder = shutil.copytree(world.place / "adapter", place / "adapter")
            found = {each: array.copy() for each, array in tensors(folder / WEIGHTS).items()}
            array = found.pop(name)
            if kind == "nan":
                array.flat[int(where * array.size)] = number
                found[name] = array
            elif kind == "renamed":
                found[name.replace("lora_", "lora_embedding_")] = array
            elif kind != "dropped":
                found[name] = {
                    "transposed": lambda: np.ascontiguousarray(array.T),
                    "cut": lambda: array[:-1].copy(),
                    "doubled": lambda: np.concatenate([array, array]),
                    "dtype": lambda: array.astype(np.int32),
                }[kind]()
            save_file(found, folder / WEIGHTS, metadata(world.place / "adapter" / WEIGHTS))
            load(world, folder)
            if kind != "nan":
                raise Silent(f"an adapter with a tensor {kind}: {name}")

    return check


def of_base(world: World):
    def check(value):
        from safetensors.numpy import save_file

        import jaxtune

        name, quant, change = value
        with world.scratch() as place:
            folder = copied(world, place)
            found = tensors(folder / "model.safetensors")
            array = found[name]
            found[name] = {"-": -array, "0": array * 0, "2": array * 2}[change]
            if (found[name] == array).all():
                return  # a leaf of zeros is the same when negated
            rewritten(folder / "model.safetensors", b"")
            save_file(found, folder / "model.safetensors", {"format": "pt"})
            model, variables = jaxtune.load(folder, quant=quant)
            jaxtune.load_adapter(model, variables, world.place / "adapter")
            raise Silent(f"an adapter on another base: {name} × {change}, quant {quant}")

    return check


def of_export(world: World):
    def check(value):
        name, change = value
        with world.scratch() as place:
            folder = shutil.copytree(world.adapter, place / "adapter")
            before = (folder / name).read_bytes()
            (folder / name).write_bytes(apply(before, change))
            load(world, folder)
            if (folder / name).read_bytes() != before and name != REPORT:
                raise Silent(f"an export whose file was changed: {name}")

    return check
