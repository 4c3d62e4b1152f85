"""What was tuned, written for others and proved: an adapter, or the whole model with it merged.

Files get their final name only once they were loaded afresh and found to be the model in memory;
those that are not stay under a name that says so.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import jaxtune
from jaxtune import quant
from jaxtune.assembly import wiring
from jaxtune.assembly.wiring import Start
from jaxtune.checkpoint.formats import bnb
from jaxtune.checkpoint.formats.writing import publish, refuse_existing
from jaxtune.checkpoint.hub import locate
from jaxtune.checkpoint.load import read
from jaxtune.checkpoint.peft.adapter import REPORT, load_adapter, save_adapter
from jaxtune.checkpoint.peft.adapter_config import CONFIG_NAME
from jaxtune.checkpoint.save import INTO, NPZ, origin_of, save_merged, stored_at
from jaxtune.config import load as configs
from jaxtune.config.schema import Config
from jaxtune.display.progress import Progress
from jaxtune.export import card, merging, reference, verify
from jaxtune.export.verify import LIMITS, Comparison, Rows, Seen, compared, observed
from jaxtune.files import write_json
from jaxtune.models.paligemma import Model
from jaxtune.workdir.checkpoints import Checkpoints
from jaxtune.workdir.directory import CONFIG, WorkdirError, begun, locked

DEPENDS = ("model.", "trainable.", "seed")  # what a checkpoint's leaves alone do not tell
# Nats that merging may move predictions by. Rounding to 16 bits takes hundredths; into the original
# weights, an adapter loses the error of the codes that it learnt beside, which may be a few tenths.
MOVED = {None: 0.1, "dequantised": 0.1, "original": 1.0}


class Unverified(ValueError):
    """What was written is not what was tuned."""


@dataclass(frozen=True)
class Wanted:
    """What is to be written, and where."""

    target: Path
    merged: bool = False  # the whole model, not the adapter alone
    dtype: str = "float32"
    into: str | None = None  # what stands in for quantised weights
    overwrite: bool = False
    outside: bool = False  # compared with transformers and PEFT, too
    there: bool = False  # it is written already, and to be verified anew

    @property
    def mark(self) -> str:
        """The file that a directory of this kind is told by."""
        return "config.json" if self.merged else CONFIG_NAME


@dataclass
class Tuned:
    """A model that was tuned; where it is merged, its variables are taken and freed."""

    config: Config
    directory: Path  # of the base
    mesh: Mesh
    model: Model
    variables: dict
    dtype: str  # that the base is held in
    step: int | None = None
    workdir: Path | None = None  # of the run that tuned it
    adapter: str | None = None  # where its adapter is from, if from no run of this config

    @cached_property
    def initial(self) -> dict | None:
        """The variables at the start, if that took the adapters out of the weights."""
        if self.adapter is not None or self.config.trainable.init != "pissa":
            return None
        return wiring.model(self.config, self.directory, self.mesh)[1]


@dataclass(frozen=True)
class Exported:
    """What was written, and what came of comparing it."""

    path: Path
    report: dict[str, Any]
    problem: str = ""  # why it is not what was tuned

    def check(self) -> None:
        """Raise what is wrong with it."""
        if self.problem:
            raise Unverified(
                f"what was written is not the model in memory: {self.problem}\n  it stays, for a "
                f"look at it, as {self.path}; nothing else was touched"
            )


@dataclass(frozen=True)
class _Check:
    """What the written files should do, and what loads them."""

    expected: Seen
    limit: float
    load: Callable[[], tuple[Model, dict]]
    merging: dict[str, Comparison] = field(default_factory=dict)  # what it changed, by its base
    problem: str = ""


def export(
    config: Config,
    workdir: Path,
    *,
    merged: str | None = None,  # the dtype of a merged model
    into: str | None = None,
    to: Path | None = None,
    step: str = "best",
    adapter: str | None = None,
    outside: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write what a run tuned, or an adapter on its config's base merged, and verify it."""
    progress = progress or Progress()
    if outside:
        reference.check(to)
    checkpoints = None if adapter else _checkpoints(config, workdir)
    number = None if checkpoints is None else _step(checkpoints, step)
    whole = merged is not None or config.trainable.kind != "lora"
    wanted = Wanted(
        to or workdir / "export" / _name(config, whole, merged, into, step, number),
        whole,
        merged or "float32",
        into,
        overwrite,
        outside,
    )
    wanted = replace(wanted, there=to is None and not overwrite and _same(wanted, number))
    _refuse(wanted)
    with locked(workdir / "export", "export"):
        directory = locate(config.model.path)
        given = rows(config, workdir, directory, progress)
        progress.draw(f"reading the weights of {config.model.path}")
        if adapter:
            tuned = _adapted(config, directory, adapter)
        else:
            tuned = _restored(config, directory, checkpoints, number)
            tuned.workdir = workdir
        if wanted.merged and merged is None:
            wanted = replace(wanted, dtype=tuned.dtype)
        return written(tuned, wanted, given or verify.random_rows(tuned.model), progress)


def written(tuned: Tuned, wanted: Wanted, rows: Rows, progress: Progress) -> Exported:
    """Write, load afresh, compare, and only then give the final name."""
    staged = wanted.target if wanted.there else _beside(wanted.target, "unverified")
    progress.draw(f"writing {wanted.target}")
    if not wanted.there:
        save(tuned, wanted, staged)
    progress.draw(f"verifying {wanted.target}")
    check = (_merged if wanted.merged else _adapter)(tuned, wanted, staged, rows)
    report = _about(tuned, wanted, rows)
    problem, found = _verified(check, rows)
    if wanted.outside and not problem:
        problem, report["reference"] = _outside(tuned, wanted, staged, rows)
    report |= {
        "kept": not problem,
        "problem": problem or None,
        "comparison": found and found.told(),
        "merging": {into: each.moved() for into, each in check.merging.items()},
        "files": _files(staged, wanted.target.name),
    }
    final = _free(wanted.target) if problem else wanted.target
    write_json(_report(staged), report)
    if staged != wanted.target or problem:
        _named(staged, final, wanted)
    if not problem:
        described(tuned, wanted)
    for line in _lines(report, found, check, final):
        progress.say(line)
    return Exported(final, report, problem)


def save(tuned: Tuned, wanted: Wanted, place: Path) -> Path:
    """Write what is wanted to some place, over what was written there before; unverified."""
    if wanted.merged:
        given = {"dtype": wanted.dtype, "into": wanted.into}
        return save_merged(tuned.model, tuned.variables, place, **given, overwrite=True)
    return save_adapter(
        tuned.variables,
        place,
        tuned.directory,
        initial=tuned.initial,
        rslora=tuned.config.trainable.variant == "rslora",
        name=tuned.config.model.path,
        overwrite=True,
    )


def described(tuned: Tuned, wanted: Wanted) -> None:
    """Write the card of what a run of this config tuned."""
    if tuned.workdir is None or jax.process_index():
        return
    whole = "npz" if wanted.target.suffix == NPZ else "merged"
    kind = whole if wanted.merged else "adapter"
    card.write(wanted.target, tuned.workdir, tuned.config, kind=kind, base=tuned.directory)


def rows(config: Config, workdir: Path, directory: Path, progress: Progress) -> Rows | None:
    """Held-out rows, or else rows to train on; None where the config's cannot be read here."""
    try:
        tokenizer = wiring.tokenizer(config, directory, begun(workdir))
        prompt = wiring.prompt(config, tokenizer, wiring.pictures(directory))
        train, held = wiring.sources(config)
        about = "training rows" if held is None else "held-out rows"
        source, model = train if held is None else held, read(directory)[2]
        return verify.rows(source, prompt, model, about, config.generate.max_new_tokens)
    except (ValueError, OSError) as error:
        progress.say(f"compared on random tokens, as the config's rows cannot be read: {error}")
        return None


# What is proved


def _adapter(tuned: Tuned, wanted: Wanted, staged: Path, rows: Rows) -> _Check:
    """An adapter alone; it is to do on the base what it does in memory."""
    model, limit = tuned.model, LIMITS[_compute(tuned.model)]
    expected = observed(model, tuned.variables, rows)
    base = {"params": tuned.variables["params"]}
    if tuned.initial is not None:
        # What the start took out of the weights was rounded, and the published ones were not.
        base = wiring.base(tuned.config, tuned.directory, tuned.mesh)[1]
        started = [observed(model, each, rows) for each in (base, tuned.initial)]
        limit += 2 * compared(*started, limit).logits
    places = _places(tuned.variables)
    return _Check(
        expected, limit, lambda: (model, _laid(load_adapter(model, base, staged), places))
    )


def _merged(tuned: Tuned, wanted: Wanted, staged: Path, rows: Rows) -> _Check:
    """The whole model; it is to do what the weights do that were merged and rounded in memory."""
    model, config, compute = tuned.model, tuned.config, _compute(tuned.model)
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
    held = replace(config.model, dtype="auto", quant=None, compute=compute)

    def load() -> tuple[Model, dict]:
        found, variables = wiring.base(replace(config, model=held), staged, tuned.mesh)
        # Of the same origin it is the same program, which need not be compiled again.
        return found.clone(origin=model.origin), _laid(variables, places)

    return _Check(expected, limit, load, moved, problem)


def _ways(model: Model, variables: dict) -> tuple[str, ...]:
    """What adapters on quantised weights can be merged into, the usual one first."""
    if not any(map(quant.is_quantized, quant.by_path(variables["params"]).values())):
        return ()
    origin = origin_of(model)
    with stored_at(origin, read(origin)[0]) as stored:
        return INTO if stored.tensors and not bnb.packed(stored) else INTO[1:]


def _places(variables: dict) -> dict:
    """On which devices each leaf lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, variables)


def _laid(variables: dict, places: dict) -> dict:
    """Variables where others like them lay, which makes it the same program."""
    with contextlib.suppress(ValueError):  # another tree: some have no adapter, or a magnitude
        return jax.tree.map(jax.device_put, variables, places)
    return variables


# What is compared


def _verified(check: _Check, rows: Rows) -> tuple[str, Comparison | None]:
    """What is wrong with the files, if anything is, and how far they are from what was expected."""
    try:
        found = compared(check.expected, observed(*check.load(), rows), check.limit)
    except ValueError as error:
        return f"loaded afresh, it cannot be compared: {error}", None
    return check.problem or ("" if found.kept else _too_far(found)), found


def _too_far(found: Comparison) -> str:
    return f"loaded afresh: {found}; within {found.limit:.1e} and all alike was expected"


def _outside(tuned: Tuned, wanted: Wanted, staged: Path, rows: Rows) -> tuple[str, dict | None]:
    """The files under transformers and PEFT, beside the same files here, in float32."""
    config, directory = tuned.config, staged if wanted.merged else tuned.directory
    held = replace(config.model, dtype="auto", quant=None, compute="float32")
    model, variables = wiring.base(replace(config, model=held), directory, tuned.mesh)
    model = model.clone(origin=tuned.model.origin)
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


def _compute(model: Model) -> str:
    return jnp.dtype(model.dtype).name


# What is told


def _about(tuned: Tuned, wanted: Wanted, rows: Rows) -> dict[str, Any]:
    return {
        "jaxtune": jaxtune.__version__,
        "what": "merged" if wanted.merged else "adapter",
        "base": tuned.config.model.path,
        "step": tuned.step,
        "adapter": tuned.adapter,
        "dtype": wanted.dtype,
        "into": wanted.into,
        "quant": tuned.config.model.quant,
        "compute": _compute(tuned.model),
        "rows": {"from": rows.about, "count": len(rows.batch.tokens)},
        "reference": None,
    }


def _files(path: Path, name: str) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of every file, or of one that is to have this name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    found = {}
    for file in files:
        if file.name not in (REPORT, card.README, card.CURVE):
            with file.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found[file.name if path.is_dir() else name] = {
                "bytes": file.stat().st_size,
                "sha256": digest,
            }
    return found


def _lines(report: dict, found: Comparison | None, check: _Check, final: Path) -> Iterator[str]:
    size = sum(each["bytes"] for each in report["files"].values())
    if report["kept"]:
        yield f"verified: loaded afresh, {found}, on {report['rows']['from']}"
    for into, each in check.merging.items():
        base = "" if into == "merged" else f" into the {into} weights"
        yield f"merging{base} as {report['dtype']} changed: {each}"
    if apart := report["reference"]:
        yield f"under transformers: {_comparison(apart)}"
    yield f"written to {final}, {size:,} bytes; what was measured is in {_report(final)}"


def _comparison(told: dict[str, Any]) -> Comparison:
    return Comparison(**{name: value for name, value in told.items() if name != "kept"})


# Where it lies


def _name(
    config: Config, whole: bool, dtype: str | None, into: str | None, step: str, number: int | None
) -> str:
    """The name under a run's `export`: train's own for the best, others say what they are."""
    parts = ["merged" if whole else "adapter", *filter(None, (dtype, into))]
    if step != "best":
        parts.append(f"step-{number}")
    npz = NPZ if whole and Path(config.model.path).suffix == NPZ else ""
    return "-".join(parts) + npz


def _beside(target: Path, state: str) -> Path:
    """`adapter.failed`, `merged.failed.npz`."""
    if target.suffix == NPZ:
        return target.with_name(f"{target.stem}.{state}{NPZ}")
    return target.with_name(f"{target.name}.{state}")


def _free(target: Path) -> Path:
    """A name that says it failed, and is nobody's yet."""
    found, number = _beside(target, "failed"), 1
    while found.exists():
        number += 1
        found = _beside(target, f"failed-{number}")
    return found


def _report(path: Path) -> Path:
    """In a directory, or beside a file."""
    return path.with_name(f"{path.stem}.{REPORT}") if path.suffix == NPZ else path / REPORT


def _named(staged: Path, final: Path, wanted: Wanted) -> None:
    """Give what was written its final name, and the report of a file its own."""
    card.carry(final, staged)
    publish(staged, final, wanted.overwrite and final == wanted.target, wanted.mark)
    if final.suffix == NPZ:
        _report(staged).replace(_report(final))


def _refuse(wanted: Wanted) -> None:
    """Stop before any work where something is in the way."""
    target = wanted.target
    if wanted.there:
        return
    if target.exists() and not wanted.overwrite:
        raise ValueError(
            f"{target} is there already: --overwrite replaces it, --to names another place"
        )
    if target.suffix != NPZ:
        refuse_existing(target, wanted.overwrite, wanted.mark)


def _same(wanted: Wanted, step: int | None) -> bool:
    """Whether what is wanted stands there already, as its report says."""
    try:
        report = json.loads(_report(wanted.target).read_bytes())
    except (OSError, ValueError):
        return False
    dtype = wanted.dtype in (report.get("dtype"), "float32")
    return dtype and (report.get("step"), report.get("into")) == (step, wanted.into)


# What was tuned


def _checkpoints(config: Config, workdir: Path) -> Checkpoints:
    """Those of the config's run."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # it warns of what is meant: to read only
    found = Checkpoints(workdir / "checkpoints")
    if not found.steps:
        raise ValueError(
            f"{found.directory} holds no checkpoint: train first, or name the run's --workdir"
        )
    before = json.loads((workdir / CONFIG).read_bytes())
    changes = [each for each in configs.difference(before, config) if each.startswith(DEPENDS)]
    if changes:
        raise WorkdirError(
            "\n  ".join([f"{workdir} holds a run of another config; what differs:", *changes])
            + "\nGive the config it was run with"
        )
    return found


def _step(checkpoints: Checkpoints, step: str) -> int:
    """The checkpoint that is meant by a number, by "best" or "last"."""
    steps = checkpoints.steps
    if step not in ("best", "last"):
        if not step.isdecimal() or int(step) not in steps:
            raise ValueError(
                f"--step {step}: expected best, last, or one of those that {checkpoints.directory} "
                f"holds: {', '.join(map(str, steps))}"
            )
        return int(step)
    position = checkpoints.position() or {"tally": {}}
    best = position["tally"].get("best_step")
    return best if step == "best" and best in steps else steps[-1]


def _restored(config: Config, directory: Path, checkpoints: Checkpoints, step: int) -> Tuned:
    """What a checkpoint of a run holds, beside its base."""
    mesh = wiring.mesh(config)
    model, variables = wiring.model(config, directory, mesh)
    start = Start(config, variables, wiring.optimizer(config, config.steps or 1), mesh)
    del variables  # what trains of them is the checkpoint's
    state = start.restored(checkpoints.restore(start.shapes, step).state)
    checkpoints.close()
    return Tuned(config, directory, mesh, model, state.variables, start.dtype, step)


def _adapted(config: Config, directory: Path, adapter: str) -> Tuned:
    """An adapter that anyone made, on the config's base."""
    mesh = wiring.mesh(config)
    model, base = wiring.base(config, directory, mesh)
    variables = load_adapter(model, base, adapter)
    return Tuned(config, directory, mesh, model, variables, config.model.dtype, adapter=adapter)
