"""Config values over the whole schema, and short runs with whatever the schema accepts."""

import dataclasses
import json
import math
from typing import Any, Literal, get_args, get_origin

import numpy as np
from hypothesis import strategies as st

from jaxtune.config.schema import FIELDS, SECTIONS
from tests.hostile.explore import Probe
from tests.hostile.outcomes import Silent, command
from tests.hostile.strategies import EXTREMES, junk, texts
from tests.hostile.world import World

# Fields that a short run may change: the others reach for a network or another device.
RUNNABLE = [key for key in FIELDS if not key.startswith(("hub.", "mesh.", "log.wandb", "data.so"))]
RUNNABLE = [key for key in RUNNABLE if key not in ("steps", "epochs", "model.path", "data.workers")]


def near(kind: Any) -> st.SearchStrategy:
    """Returns a strategy of values of a field's type, most of them at its edges."""
    if kind is float:
        numbers = [each for each in EXTREMES if isinstance(each, float)]
        return st.sampled_from(numbers) | st.floats(0, 10)
    if kind is int:
        return st.sampled_from([each for each in EXTREMES if isinstance(each, int)]) | st.integers(
            0, 9
        )
    if kind is bool:
        return st.booleans()
    if kind is type(None):
        return st.none()
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    inner = get_args(kind)
    if get_origin(kind) is tuple:
        if inner[-1] is ...:
            return st.lists(near(inner[0]), max_size=3)
        return st.tuples(*map(near, inner)).map(list)
    if inner:
        return st.one_of([near(each) for each in inner])
    patterns = st.sampled_from(
        ["lora/.*", ".*", "q_proj", "layers/attn/q/w", "(.*)*x", "(a+)+$", "[", "params/.*"]
    )
    return patterns | texts


def settings(keys: list[str]) -> st.SearchStrategy:
    """Returns a strategy of values by dotted key: some of the right types, others of none."""
    one = st.sampled_from(keys).flatmap(
        lambda key: st.tuples(
            st.just(key), st.one_of(near(FIELDS[key].type), near(FIELDS[key].type), junk)
        )
    )
    odd = st.tuples(
        texts | st.sampled_from([*SECTIONS, "optim.learning_rate", "lr", "a.b.c"]), junk
    )
    return st.lists(st.one_of(one, one, one, odd), min_size=1, max_size=4)


def probes(world: World) -> list[Probe]:
    """Returns the classes of configs."""
    accepted = st.sampled_from(RUNNABLE).flatmap(
        lambda key: st.tuples(st.just(key), near(FIELDS[key].type))
    )
    return [
        Probe("config: values", 4_000, settings(list(FIELDS)), of_values),
        Probe(
            "config: overrides",
            2_000,
            st.lists(override, min_size=1, max_size=3),
            of_overrides(world),
        ),
        Probe(
            "config: previews",
            800,
            st.lists(accepted, min_size=1, max_size=2),
            of_preview(world),
            chunk=60,
        ),
        Probe(
            "config: runs",
            40,
            st.lists(accepted, min_size=1, max_size=1),
            of_run(world),
            chunk=20,
            patience=120,
        ),
    ]


override = st.tuples(
    st.one_of(st.sampled_from(list(FIELDS)), st.sampled_from(list(SECTIONS)), texts),
    st.one_of(
        texts,
        junk.map(repr),
        st.sampled_from(
            ["(" * 5_000, "9" * 5_000, "1e999", "[[1]", "True", "None", "'", "1_0", "0x1"]
        ),
    ),
)


def nested(pairs) -> dict:
    """Returns nested dictionaries of values by dotted key."""
    values: dict = {}
    for key, value in pairs:
        section, _, name = key.rpartition(".")
        place = values.setdefault(section, {}) if section else values
        if isinstance(place, dict):
            place[name] = value
    return values


def of_values(pairs):
    from jaxtune.config import load

    given = nested(pairs)
    base = {"model": {"path": "base"}, "data": {"source": "rows"}}
    for section, needed in base.items():
        if isinstance(given.setdefault(section, {}), dict):
            given[section] = needed | given[section]
    config = load.parse(given)
    resolved = load.resolved(config)
    if load.parse(json.loads(json.dumps(resolved))) != config:
        raise Silent("a config that its own JSON does not reproduce")
    for key, field in FIELDS.items():
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, float) and not math.isfinite(value):
            raise Silent(f"not finite: {key}")
        dataclasses.replace(config)
        assert field.metadata


def of_overrides(world: World):
    def check(pairs):
        from jaxtune.config.load import load

        load(world.config, [f"--config.{key}={value}" for key, value in pairs])

    return check


def config_file(world: World, place, pairs) -> str:
    """Writes a config of two steps with changed values; lone surrogates go in as escapes."""
    given = nested(pairs)
    plain = {
        "steps": 2,
        "model": {"path": str(world.base)},
        "data": {"source": str(world.rows), "workers": 0},
        "trainable": {"rank": 2},
        "batch": {"rows": 4, "max_length": 64},
        "eval": {"holdout": 4, "every": 2},
        "generate": {"max_new_tokens": 2},
    }
    for section, values in given.items():
        plain[section] = plain.get(section, {}) | values if isinstance(values, dict) else values
    text = ascii(plain)
    head = "from math import inf, nan\n\n\n"
    (place / "config.py").write_text(f"{head}def get_config():\n    return {text}\n")
    return str(place / "config.py")


def of_preview(world: World):
    def check(pairs):
        with world.scratch() as place:
            file = config_file(world, place, pairs)
            command("preview", "--config", file, "--workdir", str(place / "run"), "--rows", "1")

    return check


def of_run(world: World):
    def check(pairs):
        with world.scratch() as place:
            file = config_file(world, place, pairs)
            command("train", "--config", file, "--workdir", str(place / "run"))
            finite(place / "run")

    return check


def finite(workdir) -> None:
    """Raises `Silent` if a run that ended well logged or exported what is not finite."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name, value in line.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise Silent(f"a result that is not finite: {name} is {value}")
    from safetensors.numpy import load_file

    for file in (workdir / "export").rglob("*.safetensors"):
        for name, value in load_file(file).items():
            if not np.isfinite(value).all():
                raise Silent(f"an export that is not finite: {name}")
