"""Rows that devices cannot share evenly: refused in training, rounded up in evaluation."""

import json
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from jaxtune.assembly.placer import Placer, refuse_uneven
from jaxtune.data.batches import Batch
from jaxtune.sharding import make_mesh
from tests import devices, tiny


def mesh(**axes) -> AbstractMesh:
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


@pytest.mark.parametrize(
    ("rows", "parts", "axes", "advice"),
    [
        (6, 1, dict(fsdp=4), "batch.rows to 4 or 8, or the mesh with data=1 fsdp=2 tensor=2"),
        (3, 1, dict(fsdp=4), "batch.rows to 4, or the mesh with data=1 fsdp=1 tensor=4"),
        (
            8,
            4,
            dict(data=2, fsdp=2, tensor=2),
            "batch.rows to 16, or batch.accumulate to 2, or the mesh with data=1 fsdp=2 tensor=4",
        ),
    ],
)
def test_rows_that_do_not_divide_are_refused_with_what_would_fit(rows, parts, axes, advice):
    with pytest.raises(ValueError, match=rf"batch\.rows={rows} .*cannot be divided") as refused:
        refuse_uneven(rows, parts, mesh(**axes))
    said = str(refused.value).replace("--config.mesh.", "")
    assert said.endswith(f"compute all rows: set {advice}")
    # Each piece of advice helps.
    for name, numbers in re.findall(r"batch\.(rows|accumulate) to ([\d or]+)", said):
        for number in map(int, re.findall(r"\d+", numbers)):
            given = {"rows": rows, "parts": parts, "mesh": mesh(**axes)}
            refuse_uneven(**given | {name.replace("accumulate", "parts"): number})
    sizes = {axis: int(size) for axis, size in re.findall(r"(data|fsdp|tensor)=(\d)", said)}
    refuse_uneven(rows, parts, mesh(**sizes))


@pytest.mark.parametrize("axes", [{}, dict(fsdp=4), dict(data=2, fsdp=2), dict(tensor=8)])
def test_rows_that_divide_are_accepted(axes):
    assert refuse_uneven(8, 2, mesh(**axes)) is None


CODE = """
    import json, sys
    from jaxtune.assembly.assemble import Assembly
    from jaxtune.config import load as config
    from jaxtune.display.progress import Quiet
    from jaxtune.evaluation import held_out
    from jaxtune.runs import console

    assembly = Assembly.of(config.parse(json.loads(sys.argv[1])), "2026-01-01")
    model, variables = assembly.model()
    placer = assembly.eval_placer
    loader = assembly.evaluating(assembly.survey(assembly.sources[1], Quiet()), placer)
    found = {"rows": placer.rows, "loss": held_out.means(model, variables, loader, placer)["loss"]}
    start = assembly.start(variables, assembly.optimizer(1))
    found["about"] = console.of_training(0, start, assembly.optimizer(1), placer)
    loader.close()
    try:
        assembly.placer
    except ValueError as error:
        found["refused"] = str(error)
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_six_rows_on_one_device_and_on_others(base, rows):
    """The held-out loss of 22 rows is the same; weights of 32 on three devices are warned about."""
    batch = {"rows": 6, "max_length": 64}
    values = tiny.settings(base, rows, batch=batch, eval={"holdout": 22})
    found = {}
    for count in (1, 3, 4):
        command = [sys.executable, "-c", textwrap.dedent(CODE), json.dumps(values)]
        environment = devices.environment(count)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[count] = json.loads(done.stdout.splitlines()[-1])
    assert {count: each["rows"] for count, each in found.items()} == {1: 6, 3: 6, 4: 8}
    for each in found.values():
        assert each["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    refused = {count: each["refused"] for count, each in found.items() if "refused" in each}
    assert refused.keys() == {4} and "batch.rows=6 cannot be divided evenly over 4" in refused[4]
    about = {count: " ".join(" ".join(each["about"]).split()) for count, each in found.items()}
    assert "warning" not in about[1] and "warning" not in about[4]
    assert re.search(
        r"warning mesh\.fsdp=3 does not divide params/.*, so it does not split them.*: 1, 2",
        about[3],
    ), about[3]


def placed(count: int) -> tuple:
    """A placer of one device, and a batch of `count` rows in two micro-batches, packed."""
    grid = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    batch = Batch(
        tokens=np.ones((2, count, 8), np.int32),
        valid=np.ones((2, count, 8), bool),
        causal=None,
        weights=np.ones((2, count, 3), np.float32),
        targets=np.ones((2, count, 3), np.int32),
        where=np.zeros((2, count, 3), np.int32),
        segments=np.zeros((2, count, 8), np.int32),
        positions=np.zeros((2, count, 8), np.int32),
    )
    return grid, batch


@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_is_described_as_it_is_placed(packing, parts):
    grid, batch = placed(4)
    placer = Placer(grid, 4, packing)
    arrays, shapes = placer(batch, parts=parts), placer.described(batch, parts=parts)
    assert jax.tree.structure(shapes) == jax.tree.structure(arrays)
    for one, two in zip(*map(jax.tree.leaves, (shapes, arrays)), strict=True):
        assert (one.shape, one.dtype, one.sharding) == (two.shape, two.dtype, two.sharding)


def test_a_process_describes_the_rows_of_all():
    grid, batch = placed(2)  # the share of one of two processes
    shapes = Placer(grid, 4, packing=False).described(batch, parts=True)
    assert shapes.tokens.shape == (2, 4, 8) and shapes.where.shape == (2, 4, 3)
    assert Placer(grid, 4, packing=False).described(batch, parts=False).tokens.shape == (4, 8)


def test_devices_that_are_only_described_take_all_rows():
    grid, _ = placed(4)
    placer = Placer(grid, 4, packing=False)
    assert placer.share == (0, 1)
    far = SimpleNamespace(addressable_devices_indices_map=lambda shape: {})
    placer = Placer(grid, 4, packing=False)
    vars(placer)["sharding"] = far
    assert placer.share == (0, 1)
