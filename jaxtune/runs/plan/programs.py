"""Compiles the programs of a run from shapes, and tells what each takes of a device."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from jaxtune import sharding
from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.state import Start
from jaxtune.data.batches import Batch
from jaxtune.decoding import outline
from jaxtune.decoding.sampling import Sampling
from jaxtune.display.errors import UserError
from jaxtune.models import host
from jaxtune.models.paligemma import Model
from jaxtune.quant.precision import GPUS
from jaxtune.runs.plan import traffic
from jaxtune.runs.plan.flops import flops
from jaxtune.runs.plan.packing import copied_bytes
from jaxtune.training.objectives import Objective
from jaxtune.training.optim import Optimizer
from jaxtune.training.population import Population, compiled_losses, compiled_population_step
from jaxtune.training.step import compiled_eval, compiled_step

# libtpu does not compile a program that does not fit, but says how much it would take; the words
# depend on its version.
TOO_MUCH = re.compile(r"(?:Used |required for HLO temporaries \()([0-9.]+)([KMGT])\b")
UNITS = {unit: 1024**power for power, unit in enumerate("KMGT", 1)}
# XLA picks tiles for Triton's matmuls by trying them. Where it compiles for a GPU that is not at
# hand, it cannot, and the tiles of its default may not fit, as for heads of size 72.
WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class Program:
    """A compiled program, and what each device needs to run it.

    Attributes:
      name: What it does: "train", "evaluate", "prefill" or "decode".
      sizes: Sizes of its batch by name, such as `tokens`.
      peak_bytes: Memory of a device while it runs, with everything else that the run holds then.
      items: Parts of the peak by name, which sum to it.
      flops: Floating-point operations of a device; a multiply-add counts as two.
      read_bytes: Bytes of the arrays that it takes and returns.
      sent: Bytes that a device sends to others, by kind of collective; empty if it failed.
      seconds: Time of compilation.
      outputs: Shardings of what it returns; None if the compiler refused it, as that of a TPU
        does with a program that does not fit.
    """

    name: str
    sizes: Mapping[str, int]
    peak_bytes: int
    items: Mapping[str, int]
    flops: float
    read_bytes: int
    sent: Mapping[str, int]
    seconds: float
    outputs: Any = field(repr=False, compare=False)

    def itemised(
        self, held: Mapping[str, int], *, beside: int, gradients: bool = False
    ) -> "Program":
        """Returns the program with the items of its peak.

        Args:
          held: Bytes that are known, by what they are, of which "trained" has gradients.
          beside: Bytes of these that the program does not take, and that its peak leaves out.
          gradients: Whether it computes gradients.
        """
        peak = self.peak_bytes + beside
        rest = max(0, peak - sum(held.values()))
        items = dict(held)
        if gradients:
            items["gradients"] = min(rest, held["trained"])
        items["activations"] = rest - items.get("gradients", 0)
        return replace(self, peak_bytes=sum(items.values()), items=items)


@dataclass(frozen=True, eq=False)
class Shapes:
    """Shapes and shardings of everything that the programs of a run take.

    Attributes:
      model: The model.
      optimizer: The optimiser of the run.
      objective: What it minimises.
      start: Shapes of the leaves that train, of the frozen ones and of the train state.
      mesh: Mesh of the devices.
    """

    model: Model
    optimizer: Optimizer
    objective: Objective
    start: Start
    mesh: Mesh

    @classmethod
    def of(cls, assembly: Assembly, total: int) -> "Shapes":
        """Returns the shapes of a run of `total` steps; no weights are read."""
        model, variables = assembly.outline()
        optimizer = assembly.optimizer(total)
        start = assembly.start(variables, optimizer)
        return cls(model, optimizer, assembly.objective, start, assembly.mesh)

    @property
    def variables(self) -> dict:
        """Variables of the model while it trains."""
        return self.start.shapes.replace(frozen=self.start.frozen).variables

    @cached_property
    def held(self) -> dict[str, int]:
        """Bytes that a device holds throughout the run, by what they are."""
        state = self.start.shapes
        trained = sharding.device_bytes(state.trainable)
        return {
            "base": sharding.device_bytes(self.start.frozen),
            "trained": trained,
            "optimiser": sharding.device_bytes(state) - trained,
        }


def train(shapes: Shapes, batch: Batch) -> Program:
    """Compiles the training step for a batch, which is given as shapes, [A, B, …]."""
    frozen = host.extracted(shapes.start.frozen, batch.tokens)
    given = (shapes.start.shapes, frozen, batch, shapes.objective)
    traced = compiled_step.trace(shapes.model, shapes.optimizer, *given)
    found = _compile("train", traced, shapes, _sizes(batch))
    # While a step runs, the next batch is placed on the devices. Gradients are float32.
    size = _batch_bytes(batch, frozen)
    return found.itemised({**shapes.held, "batch": 2 * size}, beside=size, gradients=True)


def evaluate(shapes: Shapes, batch: Batch) -> Program:
    """Compiles the held-out loss of a batch, which is given as shapes, [B, …]."""
    variables = host.extracted(shapes.variables, batch.tokens)
    traced = compiled_eval.trace(shapes.model, variables, batch, shapes.objective)
    found = _compile("evaluate", traced, shapes, _sizes(batch))
    size = _batch_bytes(batch, variables)
    beside = size + shapes.held["optimiser"]
    return found.itemised({**shapes.held, "batch": 2 * size}, beside=beside)


def train_together(shapes: Shapes, batch: Batch, count: int, own: bool) -> Program:
    """Compiles the step of a population of `count` members, each like the run of these shapes.

    `batch` is given as shapes, [A, B, …], or if each member has its own, as [M, A, B, …].
    """
    population = Population.described(shapes.start.shapes, shapes.start.frozen, count)
    shared = host.extracted(population.shared, batch.tokens)
    traced = compiled_population_step.trace(
        shapes.model,
        shapes.optimizer,
        population.states,
        shared,
        batch,
        own,
        shapes.objective,
    )
    found = _compile("train", traced, shapes, {"members": count} | _sizes(batch))
    size = _batch_bytes(batch, shared)
    held = _of_members(shapes, count) | {"batch": 2 * size}
    return found.itemised(held, beside=size, gradients=True)


def evaluate_together(shapes: Shapes, batch: Batch, count: int) -> Program:
    """Compiles the held-out losses of a population for a batch, given as shapes, [B, …]."""
    population = Population.described(shapes.start.shapes, shapes.start.frozen, count)
    shared = host.extracted(population.shared, batch.tokens)
    given = (shapes.model, population.states, shared, batch, shapes.objective)
    found = _compile(
        "evaluate", compiled_losses.trace(*given), shapes, {"members": count} | _sizes(batch)
    )
    size = _batch_bytes(batch, shared)
    return found.itemised(_of_members(shapes, count) | {"batch": 2 * size}, beside=size)


def _of_members(shapes: Shapes, count: int) -> dict[str, int]:
    """Returns the bytes that a device holds for a population, whose members share the base."""
    return {name: size * (1 if name == "base" else count) for name, size in shapes.held.items()}


def decode(
    shapes: Shapes, batch: outline.Batch, sampling: Sampling, stops: int
) -> Iterator[Program]:
    """Compiles the two programs that answer a batch of prompts: the prefill, and the loop.

    `stops` is the number of stop tokens. If the first does not fit, the second is left out.
    """
    model, mesh, variables = shapes.model, shapes.mesh, host.returned(shapes.variables)
    whole = shapes.held | {"base": sharding.device_bytes(host.returned(shapes.start.frozen))}
    sizes = {"rows": batch.rows, "tokens": batch.longest, "new": batch.new}
    traced = outline.traced_prefill(model, variables, mesh, batch, sampling, stops)
    prefill = _compile("prefill", traced, shapes, sizes)
    beside = shapes.held["optimiser"]
    yield prefill.itemised(whole, beside=beside)
    if prefill.outputs is None:
        return
    state = sharding.described(traced.out_info, prefill.outputs)
    loop = _compile("decode", outline.traced_loop(model, variables, state), shapes, sizes)
    held = {**whole, "cache": sharding.device_bytes(state)}
    yield loop.itemised(held, beside=beside)


def _batch_bytes(batch: Batch, weights: Any) -> int:
    """Returns what a device holds for a batch, its share of the vectors of an embedding included.

    `weights` are what a program takes besides, of which the host sends these vectors alone.
    """
    return sharding.device_bytes(batch) + sharding.host_bytes(weights)


def _sizes(batch: Batch) -> dict[str, int]:
    """Returns the sizes of a batch by name."""
    *parts, rows, tokens = batch.tokens.shape
    found = {"micro-batches": parts[0]} if parts else {}
    found |= {"rows": rows, "tokens": tokens, "scored": batch.where.shape[-1]}
    return found | ({} if batch.images is None else {"pictures": batch.images.shape[-4]})


def _compile(name: str, traced: Any, shapes: Shapes, sizes: Mapping[str, int]) -> Program:
    """Compiles a traced program; its peak is that of the program alone, in one item."""
    begun = time.perf_counter()
    operations = flops(traced.jaxpr) / shapes.mesh.size
    compiled, refused = _compiled(traced.lower(), shapes.mesh)
    if compiled is None:
        peak = max(refused, sum(shapes.held.values()))
        moved, sent, outputs = 0, {}, None
    else:
        memory = compiled.memory_analysis()
        moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
        # The peak that the CPU's compiler reports leaves out temporaries.
        whole = moved - memory.alias_size_in_bytes + memory.temp_size_in_bytes
        peak = max(whole, memory.peak_memory_in_bytes)
        if shapes.mesh.devices.flat[0].platform == "cpu":
            peak += copied_bytes(_text(compiled))
        sent = traffic.measure(_text(compiled)).by_kind if shapes.mesh.size > 1 else {}
        outputs = compiled.output_shardings
    seconds = time.perf_counter() - begun
    items = {"program": peak}
    return Program(name, sizes, peak, items, operations, moved, sent, seconds, outputs)


def _text(compiled: Any) -> str:
    """Returns the text of a compiled program, which jaxlib reads from what its compiler made."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            "the compiler of the devices is of another version than jaxlib, which cannot read its "
            f"programs: install the one for jax {jax.__version__}, as docs/devices.md shows"
            f"\n  {str(error).splitlines()[0][:200]}"
        ) from error


def _compiled(lowered: Any, mesh: Mesh) -> tuple[Any, int]:
    """Returns the compiled program, or None and the bytes that it would take if it does not fit."""
    device = mesh.devices.flat[0]
    for options in (None, WITHOUT_TRITON):
        try:
            return lowered.compile(options), 0
        except jax.errors.JaxRuntimeError as error:
            if refused := TOO_MUCH.search(str(error)):
                number, unit = refused.groups()
                return None, int(float(number) * UNITS[unit])
            if options or device.platform not in GPUS or device in jax.devices():
                raise
    raise AssertionError("the loop returns or raises")
