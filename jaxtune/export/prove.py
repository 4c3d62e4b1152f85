"""What the written files must do, and whether they do it: loaded afresh, and compared."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import quant
from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.load import read_config
from jaxtune.checkpoint.origin import Origin
from jaxtune.checkpoint.peft.load_adapter import load_adapter
from jaxtune.checkpoint.save import INTO, stored_at
from jaxtune.display.progress import Progress
from jaxtune.export import merging, reference, verify
from jaxtune.export.targets import Wanted
from jaxtune.export.tuned import Tuned
from jaxtune.export.verify import (
    LIMITS,
    Comparison,
    ComparisonRows,
    ModelOutputs,
    compared,
    observed,
)
from jaxtune.models.paligemma import Model

# Nats that merging may move predictions by. Rounding to 16 bits takes hundredths; into the original
# weights, an adapter loses the error of the codes that it learnt beside, which may be a few tenths.
MOVED = {None: 0.1, "dequantised": 0.1, "original": 1.0}


@dataclass(frozen=True)
class Check:
    """What the written files should do, and what loads them."""

    expected: ModelOutputs
    limit: float
    load: Callable[[], tuple[Model, dict]]
    merging: dict[str, Comparison] = field(default_factory=dict)  # what it changed, by its base
    problem: str = ""


def rows(assembly: Assembly, progress: Progress) -> ComparisonRows | None:
    """Held-out rows, or else rows to train on; None where the config's cannot be read here."""
    try:
        encoder, (train, held_out) = assembly.encoder, assembly.sources
        about = "training rows" if held_out is None else "held-out rows"
        source, model = held_out or train, read_config(assembly.checkpoint)[2]
        new = assembly.config.generate.max_new_tokens
        return verify.rows(source, encoder, model, about, new)
    except (ValueError, OSError) as error:
        progress.say(f"compared on random tokens, as the config's rows cannot be read: {error}")
        return None


def check_adapter(tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows) -> Check:
    """An adapter alone; it is to do on the base what it does in memory."""
    model, limit = tuned.model, LIMITS[compute_of(tuned.model)]
    expected = observed(model, tuned.variables, rows)
    base = {"params": tuned.variables["params"]}
    if tuned.initial is not None:
        # What the start took out of the weights was rounded, and the published ones were not.
        base = tuned.assembly.base()[1]
        started = [observed(model, each, rows) for each in (base, tuned.initial)]
        limit += 2 * compared(*started, limit).logits
    places = _places(tuned.variables)
    return Check(expected, limit, lambda: (model, _laid(load_adapter(model, base, staged), places)))


def check_merged(tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows) -> Check:
    """The whole model; it is to do what the weights do that were merged and rounded in memory."""
    model, compute = tuned.model, compute_of(tuned.model)
    limit = LIMITS[compute]
    ways = _ways(model, tuned.variables)
    into = wanted.into or (ways[0] if ways else None)
    before = observed(model, tuned.variables, rows)
    moved = {}
    for way in ways:
        if way != into:
            plain = merging.merged(model, tuned.variables, way, wanted.dtype)
            moved[way] = compared(before, observed(model, plain, rows), limit)
            del plain
    plain = merging.merged(model, tuned.variables, into or INTO[1], wanted.dtype, take=True)
    expected, places = observed(model, plain, rows), _places(plain)
    del plain
    change = moved[into or "merged"] = compared(before, expected, limit)
    problem = ""
    if change.kl > MOVED[into]:
        problem = (
            f"merged{f' into the {into} weights' if into else ''} as {wanted.dtype}, it predicts "
            f"something else than the adapter beside its base: KL {change.kl:.2g} nats, where "
            f"{MOVED[into]} at most was expected"
        )

    def load() -> tuple[Model, dict]:
        held: dict[str, Any] = dict(dtype="auto", quant=None, compute=compute)
        found, variables = tuned.assembly.base(staged, **held)
        return found, _laid(variables, places)

    return Check(expected, limit, load, moved, problem)


def _ways(model: Model, variables: dict) -> tuple[str, ...]:
    """What adapters on quantised weights can be merged into, the usual one first."""
    if not any(map(quant.is_quantized, quant.by_path(variables["params"]).values())):
        return ()
    origin = Origin.of(model).path
    with stored_at(origin, read_config(origin)[0]) as stored:
        return INTO if stored.tensors and not bnb.packed(stored) else INTO[1:]


def _places(variables: dict) -> dict:
    """On which devices each leaf lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, variables)


def _laid(variables: dict, places: dict) -> dict:
    """Variables where others like them lay, which makes it the same program."""
    with contextlib.suppress(ValueError):  # another tree: some have no adapter, or a magnitude
        return jax.tree.map(jax.device_put, variables, places)
    return variables


def verify_files(check: Check, rows: ComparisonRows) -> tuple[str, Comparison | None]:
    """What is wrong with the files, if anything is, and how far they are from what was expected."""
    try:
        found = compared(check.expected, observed(*check.load(), rows), check.limit)
    except ValueError as error:
        return f"loaded afresh, it cannot be compared: {error}", None
    return check.problem or ("" if found.kept else _too_far(found)), found


def _too_far(found: Comparison) -> str:
    return f"loaded afresh: {found}; within {found.limit:.1e} and all alike was expected"


def compare_outside(
    tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows
) -> tuple[str, dict | None]:
    """The files under transformers and PEFT, beside the same files here, in float32."""
    directory = staged if wanted.merged else tuned.assembly.checkpoint
    held: dict[str, Any] = dict(dtype="auto", quant=None, compute="float32")
    model, variables = tuned.assembly.base(directory, **held)
    if not wanted.merged:
        variables = _laid(load_adapter(model, variables, staged), _places(tuned.variables))
    seen = observed(model, variables, rows)
    expected = replace(seen, answers=verify.before_switch(model, rows, seen.answers))
    pictured = model.pictures is not None
    del variables
    adapter = None if wanted.merged else staged
    found = reference.observed(directory, adapter, pictured, rows, expected.answers)
    apart = compared(expected, found, LIMITS["float32"])
    problem = "" if apart.kept else f"under transformers, {_too_far(apart)}"
    return problem, apart.told()


def compute_of(model: Model) -> str:
    return jnp.dtype(model.dtype).name
