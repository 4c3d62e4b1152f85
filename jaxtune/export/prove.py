"""Verifies written files: loads them afresh and compares them with the expected outputs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import quant
from jaxtune.adapters import lora
from jaxtune.assembly.assemble import Assembly
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.load import read_config
from jaxtune.checkpoint.peft.load_adapter import load_adapter
from jaxtune.checkpoint.save import INTO, described_origin
from jaxtune.display.progress import Progress
from jaxtune.export import merging, reference, verify
from jaxtune.export.distance import distance
from jaxtune.export.targets import Wanted, in_dtype
from jaxtune.export.tuned import Tuned
from jaxtune.export.verify import (
    LIMITS,
    Comparison,
    ComparisonRows,
    ModelOutputs,
    Same,
    compared,
    observed,
)
from jaxtune.models.paligemma import Model
from jaxtune.workdir import agreement

# Largest KL divergence in nats by which merging may move predictions. Rounding to 16 bits costs
# hundredths. In the original weights, an adapter lacks the quantisation error that it was trained
# with, which may cost a few tenths.
MOVED = {None: 0.1, "dequantised": 0.1, "original": 1.0}


@dataclass(frozen=True)
class Check:
    """What is expected of written files, and the function that loads them."""

    expected: Callable[[], ModelOutputs]
    limit: float
    load: Callable[[], tuple[Model, dict]]
    # From the loaded variables to how they are the same, if they equal those in memory.
    same: Callable[[dict], Same | None] = lambda _: None
    # Effect of merging by `into`, or as "merged" if no weight is quantised.
    merging: dict[str, Comparison] = field(default_factory=dict)
    problem: str = ""  # why merging itself failed
    warnings: tuple[str, ...] = ()  # what merging changed, and how to avoid it


def rows(assembly: Assembly, progress: Progress) -> ComparisonRows | None:
    """Returns held-out rows, or else training rows; None if the config's rows cannot be read."""
    try:
        encoder, (train, held_out) = assembly.encoder, assembly.sources
        about = "training rows" if held_out is None else "held-out rows"
        source, model = held_out or train, read_config(assembly.checkpoint)[2]
        new = assembly.config.generate.max_new_tokens
        return verify.rows(source, encoder, model, about, new)
    except (ValueError, OSError) as error:
        progress.say(
            f"comparing on random tokens, because the config's rows cannot be read: {error}"
        )
        return None


def check_adapter(tuned: Tuned, staged: Path, rows: ComparisonRows) -> Check:
    """Prepares the check that a written adapter gives the same outputs on the base as in memory.

    Where its arrays equal those in memory, on the same base, logits are computed once and no answer
    is. With PiSSA init, the base is the published one, and the limit is widened by its difference
    from the initial weights.

    Args:
      tuned: The tuned model.
      staged: Path of the written adapter.
      rows: Rows to compare on.

    Returns:
      The check for `verify_files`.
    """
    model, limit = tuned.model, LIMITS[compute_of(tuned.model)]
    logits = verify.logits(model, tuned.variables, rows)
    base, same = {"params": tuned.variables["params"]}, partial(_same, tuned.variables, len(logits))
    if tuned.initial is not None:
        # Subtracting the initial adapters rounded the weights; the published ones are not rounded.
        base, same = tuned.assembly.base()[1], Check.same
        started = [verify.logits(model, each, rows) for each in (base, tuned.initial)]
        limit += 2 * distance(*started).logits
    places = _places(tuned.variables)
    return Check(
        lambda: ModelOutputs(logits, verify.answers(model, tuned.variables, rows)),
        limit,
        lambda: (model, _laid(load_adapter(model, base, staged), places)),
        same,
    )


def check_merged(tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows) -> Check:
    """Prepares the check that a written model gives the outputs of weights merged in memory.

    Those weights are rounded to the same data type. The effect of merging is measured too; if it
    exceeds `MOVED`, the check has a problem.

    Args:
      tuned: The tuned model; its variables are emptied.
      wanted: The data type of the merged weights, and what replaces quantised ones.
      staged: Path of the written model.
      rows: Rows to compare on.

    Returns:
      The check for `verify_files`.
    """
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
    narrow = sorted({leaf.dtype.name for leaf in jax.tree.leaves(plain) if leaf.itemsize < 4})
    del plain
    change = moved[into or "merged"] = compared(before, expected, limit)
    problem = ""
    if change.kl > MOVED[into]:
        problem = (
            f"merging{f' into the {into} weights' if into else ''} {in_dtype(wanted.dtype)} "
            f"changed the predictions too much: KL {change.kl:.2g} nats from the unmerged model, "
            f"expected at most {MOVED[into]}"
        )

    def load() -> tuple[Model, dict]:
        held: dict[str, Any] = dict(dtype="auto", quant=None, compute=compute)
        found, variables = tuned.assembly.base(staged, **held)
        return found, _laid(variables, places)

    return Check(
        lambda: expected,
        limit,
        load,
        merging=moved,
        problem=problem,
        warnings=tuple(_losses(change, into, narrow)),
    )


def _losses(change: Comparison, into: str | None, narrow: Sequence[str]) -> Iterator[str]:
    """Yields a warning if merging changed answers, with the settings that avoid it.

    Args:
      change: The merged model compared with the unmerged one.
      into: What quantised weights were merged into, or None if there are none.
      narrow: Names of the written dtypes that are narrower than float32.
    """
    how, ways = "merging", []
    if into:
        how += f" into the {into} weights"
    if narrow:
        how += f" in {' and '.join(narrow)}"
        ways.append("--merged float32 avoids its rounding")
    if into == INTO[0]:
        ways.append(f"--into {INTO[1]} keeps the weights that the adapter was trained on")
    # Without rounding, answers that part between equally likely tokens are the same answers.
    lost = change.answers - change.alike - (0 if ways else change.ties)
    if lost:
        yield f"{how} changed {lost} of {change.answers} answers" + "".join(f"; {w}" for w in ways)


def _ways(model: Model, variables: dict) -> tuple[str, ...]:
    """Returns the possible values of `into`, the default first; () if no weight is quantised."""
    if not any(map(quant.is_quantized, quant.by_path(variables["params"]).values())):
        return ()
    with described_origin(model).stored as stored:
        return INTO if stored.tensors and not bnb.packed(stored) else INTO[1:]


def _places(variables: dict) -> dict:
    """Returns the sharding of each leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, variables)


def _laid(variables: dict, places: dict) -> dict:
    """Moves variables to the shardings of similar ones, to reuse the same compiled program."""
    with contextlib.suppress(ValueError):  # another tree: adapters or magnitudes may differ
        return jax.tree.map(jax.device_put, variables, places)
    return variables


def _same(variables: dict, positions: int, loaded: dict) -> Same | None:
    """Returns how loaded variables are the same, or None unless all arrays of adapters are equal.

    Dropout does not count, which outputs do not depend on outside of training. `positions` is the
    number of those with finite logits.
    """
    ours, theirs = (
        {
            (path, name): getattr(adapter, name)
            for path, adapter in lora.adapters(each).items()
            for name in ("a", "b", "scale", "magnitude")
            if getattr(adapter, name) is not None
        }
        for each in (variables, loaded)
    )
    alike = jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    return Same(len(ours), positions) if alike and bool(_all_equal(ours, theirs)) else None


@jax.jit
def _all_equal(ours: dict, theirs: dict) -> jax.Array:  # bool[]
    same = jax.tree.map(lambda one, other: (one == other).all(), ours, theirs)
    return jnp.stack(jax.tree.leaves(same)).all()


def verify_files(check: Check, rows: ComparisonRows) -> tuple[str, Comparison | Same | None]:
    """Returns a description of the mismatch, or "" if there is none, and what was found.

    That is None if the files cannot be loaded or compared.
    """
    unusable = "the written files cannot be loaded and compared: "
    loaded, problem = None, ""
    try:
        loaded = check.load()
    except ValueError as error:
        problem = str(error)
    if problem := agreement.any_text(problem):
        return unusable + problem, None
    if same := check.same(loaded[1]):
        return agreement.of_first(lambda: check.problem), same
    try:
        found = compared(check.expected(), observed(*loaded, rows), check.limit)
    except ValueError as error:
        return f"{unusable}{error}", None
    said = check.problem or ("" if found.kept else f"reloaded from disk, {_too_far(found)}")
    return agreement.of_first(lambda: said), found


def _too_far(found: Comparison) -> str:
    return f"{found}; expected at most {found.limit:.1e} and identical answers"


def compare_outside(
    tuned: Tuned, wanted: Wanted, staged: Path, rows: ComparisonRows
) -> tuple[str, dict | None]:
    """Compares the files under transformers and PEFT with the same files under jaxtune, in float32.

    Of several processes, the first one runs transformers.

    Args:
      tuned: The tuned model, with its base.
      wanted: What was written.
      staged: Path of the written files.
      rows: Rows to compare on.

    Returns:
      A description of the mismatch, or "" if there is none, and the comparison for the report.
    """
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

    def observed_outside() -> tuple[str, dict]:
        found = reference.observed(directory, adapter, pictured, rows, expected.answers)
        apart = compared(expected, found, LIMITS["float32"])
        return "" if apart.kept else f"loaded in transformers, {_too_far(apart)}", apart.told()

    return tuple(agreement.of_first(observed_outside))


def compute_of(model: Model) -> str:
    return jnp.dtype(model.dtype).name
