"""Reports what programs of TPUs and GPUs move for nothing, compiled without the hardware.

    pip install 'jax[tpu]'
    python benchmarks/traffic.py [--target v5e] [--case NAME]

    pip install 'jax-cuda12-plugin[with-cuda]'
    python benchmarks/traffic.py --target h100

No weights are loaded and nothing is run. Of each program two things are reported. The first is its
temporary memory; that of decoding may be a fifth of its KV cache at most. The second is which
arrays as large as a layer's gate projection, as it is stored, are only moved inside its loops: by
copies, transposes, concatenations and slices that are written to memory, not to a TPU's vector
memory. There should be none.
"""

import argparse
import datetime
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compiled_memory import Case as Step
from compiled_memory import step
from shapes import GEMMA_3_270M, LLAMA_3_8B

from jaxtune.display.errors import UserError
from jaxtune.runs.plan import hlo
from jaxtune.runs.plan.chips import GiB
from jaxtune.runs.plan.targets import compile_only, target

compile_only()
SHARE = 0.2  # largest temporary memory of decoding, as a share of its cache
MOVING = ("copy", "transpose", "concatenate", "dynamic-slice")
MOVES = re.compile(r"copy|transpose|concatenate|dynamic[-_]slice")  # in names of fusions
ON_CHIP = "S(1)"  # in the layout of an array in a TPU's vector memory, which is no traffic
# What is inside of these is not written to memory.
FUSED = re.compile(r"fused|gemm_fusion|wrapped|copy")


@dataclass(frozen=True)
class Case:
    """A model whose training step is compiled, or whose decoding is."""

    shape: Mapping
    quant: str | None
    rank: int | None = None
    rows: int = 1
    slots: int = 4096  # tokens of a row, or slots of a row's cache
    decoding: bool = False


CASES = {
    "train-8b": Case(LLAMA_3_8B, None, rank=16),
    "train-8b-nf4": Case(LLAMA_3_8B, "nf4-double", rank=16),
    "decode-8b": Case(LLAMA_3_8B, None, rows=8, decoding=True),
    "decode-8b-nf4": Case(LLAMA_3_8B, "nf4", rows=8, decoding=True),
    "decode-270m": Case(GEMMA_3_270M, None, rank=8, rows=8, decoding=True),
}


def main() -> None:
    """Compiles the cases and prints what they move."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target", default="v5e", help="a chip of docs/devices.md, such as h100 (default: v5e)"
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to compile, repeatable (default: all)"
    )
    options = parser.parse_args()
    try:
        chosen = target(options.target)
        [device, *_] = chosen.devices()
    except UserError as problem:
        parser.error(str(problem))
    print(f"{datetime.date.today()}, compiled for one {chosen.chip.title}")
    kept = [report(name, CASES[name], device) for name in options.case or CASES]
    sys.exit(not all(kept))


def report(name: str, case: Case, device: Any) -> bool:
    """Compiles the programs of a case, prints what they move, and returns whether it is little."""
    from jaxtune import quant, sharding

    mesh = sharding.make_mesh(dict.fromkeys(sharding.AXES, 1), [device])
    width, hidden = case.shape["hidden_size"], case.shape["intermediate_size"]
    least = quant.nbytes((width, hidden), case.quant) if case.quant else 2 * width * hidden
    kept = True
    for title, lowered, cache in programs(case, mesh):
        compiled = lowered.compile()
        used = compiled.memory_analysis()
        moved = moves(compiled.as_text(), least)
        little = used.temp_size_in_bytes <= SHARE * cache if cache else True
        print(f"{name}, {title}: temporaries {used.temp_size_in_bytes / GiB:.2f} GiB", end="")
        print(f", peak {used.peak_memory_in_bytes / GiB:.2f} GiB", end="")
        if cache:
            print(f", cache {cache / GiB:.2f} GiB: {'kept' if little else 'BROKEN'}", end="")
        print(f"\n  moved in loops: {text(moved)}", flush=True)
        kept &= little and not moved
    return kept


def text(moved: Mapping[str, int]) -> str:
    """Returns the arrays that are moved, or says that there are none."""
    if not moved:
        return "nothing of a weight's size: kept"
    return "; ".join(f"{count} × {array}" for array, count in moved.items()) + ": BROKEN"


def moves(program: str, least: float) -> Counter:
    """Counts the arrays of at least `least` bytes that loops of a compiled program only move."""
    module = hlo.parse(program)
    found: Counter = Counter()
    for computation in module.computations.values():
        if computation.name == module.entry or FUSED.match(computation.name):
            continue  # what is outside of loops is moved once
        for each in computation.instructions.values():
            if "update" in each.name + each.opcode or "convert" in each.name:
                continue
            fusion = each.opcode == "fusion" and MOVES.search(each.name)
            array = hlo.ARRAY.match(each.shape)
            if not array or ON_CHIP in each.shape:
                continue
            if (fusion or each.opcode in MOVING) and hlo.nbytes(each.shape) >= least:
                found[f"{array[1]}[{array[2]}] {each.opcode}"] += 1
    return found


def programs(case: Case, mesh: Any) -> list[tuple[str, Any, int]]:
    """Returns the lowered programs of a case: title, program, and bytes of the cache or 0."""
    if case.decoding:
        return decoding(case, mesh)
    settings = dict(rank=case.rank, batch=(case.rows, case.slots), scored=case.slots)
    given = Step("", case.shape, **settings, bound=0, quant=case.quant, dropout=0.0)
    return [("a step", step(given, mesh), 0)]


def decoding(case: Case, mesh: Any) -> list[tuple[str, Any, int]]:
    """Returns the programs that begin answers of half the slots to prompts of the other half."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    import jaxtune
    from jaxtune import families, quant, tree
    from jaxtune.checkpoint.load import leaf_shapes
    from jaxtune.decoding import outline
    from jaxtune.decoding.sampling import Sampling

    where = NamedSharding(mesh, PartitionSpec())

    def array(dtype, *sizes):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

    model = families.find(case.shape).model(case.shape).clone(dtype=jnp.bfloat16)
    shapes = leaf_shapes(model)
    kinds = quant.kinds(shapes, case.quant)
    held = {
        path: quant.abstract(shape, kinds[path])
        if path in kinds
        else jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for path, shape in shapes.items()
    }
    variables = {"params": tree.unflatten(held)}
    if case.rank:
        how = dict(rank=case.rank, key=jax.random.key(0))
        variables = jax.eval_shape(lambda given: jaxtune.add_lora(given, **how), variables)
    variables = jax.tree.map(lambda leaf: array(leaf.dtype, *leaf.shape), variables)
    half = case.slots // 2
    batch = outline.Batch(case.rows, half, pictures=0, new=half)
    begun = outline.traced_prefill(model, variables, mesh, batch, Sampling.of(), stops=1)
    state = jax.tree.map(lambda leaf: array(leaf.dtype, *leaf.shape), begun.out_info)
    loop = outline.traced_loop(model, variables, state)
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.cache.stored))
    return [("prefill", begun.lower(), 0), ("decoding", loop.lower(), cache)]


if __name__ == "__main__":
    main()
