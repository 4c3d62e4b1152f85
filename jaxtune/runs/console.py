"""Reports that a run prints before its first step."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from jaxtune import quant, tree
from jaxtune.assembly.placer import Placer
from jaxtune.assembly.rows import Rows
from jaxtune.assembly.state import Start, parameters, trained_leaves
from jaxtune.config.training_sections import Batch
from jaxtune.data.loader import Loader
from jaxtune.display.columns import few, grid, labelled, size_text
from jaxtune.display.escapes import plural
from jaxtune.sharding import divisors, host_bytes, total_bytes, undivided
from jaxtune.training.optim import Optimizer


def of_rows(max_length: int, train: Rows, held: Rows | None) -> list[str]:
    """Returns lines with the counts of rows, tokens and scored tokens, and of rows left out."""
    named = [("training", train), *([("held-out", held)] if held else [])]
    lines = [(name, _rows(rows, max_length)) for name, rows in named]
    lines += [line for name, rows in named for line in _losses(name, rows)]
    return [part for label, text in lines for part in labelled({label: text})]


def of_steps(batch: Batch, loader: Loader, total: int, placer: Placer) -> list[str]:
    """Returns lines that describe the batch and the number of steps and epochs.

    Args:
      batch: Section `batch` of the config.
      loader: Loader of the training rows, which knows the steps of an epoch.
      total: Steps of the whole run.
      placer: Its mesh tells the devices.

    Returns:
      Lines of text.
    """
    parts = batch.accumulate
    lines = f"{plural(batch.rows, 'line')} of {batch.max_length:,} tokens"
    devices = placer.mesh.size
    found = {
        "batch": (lines if batch.packing else plural(batch.rows, "row"))
        + (f" in {parts} micro-batches of {batch.rows // parts}" if parts > 1 else "")
        + (f", over {devices} devices" if devices > 1 else ""),
        "steps": f"{total:,} ({plural(total / loader.steps_per_epoch, 'epoch', '.3g')} of "
        f"{plural(loader.steps_per_epoch, 'step')})",
    }
    return labelled(found)


def of_training(seed: int, start: Start, optimizer: Optimizer, placer: Placer) -> list[str]:
    """Returns lines on what trains, the hyperparameters and the memory before the first step.

    Args:
      seed: Seed of the run.
      start: Trained and frozen leaves, and the shapes of the state.
      optimizer: Optimiser with its hyperparameters.
      placer: Its mesh tells how leaves are sharded.

    Returns:
      Lines of text.
    """
    trained = parameters(start.selected)
    whole = trained + parameters(start.frozen)
    hyper, paths = optimizer.hyper, list(tree.flatten(start.selected))
    lines = {
        "trains": f"{trained:,} of {whole:,} parameters ({trained / whole:.2%}), in "
        f"{len(paths)} {'leaf' if len(paths) == 1 else 'leaves'}: {few(paths, len(paths))}",
        "optimiser": f"{optimizer.name}, lr {hyper['lr']:g} ({optimizer.schedule} schedule), "
        f"warm-up {plural(hyper['warmup_steps'], 'step')}, weight decay {hyper['weight_decay']:g}, "
        f"clip norm {hyper['clip_norm']:g}, seed {seed}",
        "memory": _held(start),
    }
    if apart := host_bytes(start.frozen):
        lines["embedding"] = f"{size_text(apart)} on the host; a step takes its tokens' vectors"
    if kinds := _quantised(start.frozen):
        lines["quantised"] = kinds
    weights = {**quant.by_path(start.frozen), **quant.by_path(start.selected)}
    return labelled(lines) + _undivided(weights, placer.mesh)


def leaf_table(start: Start, placer: Placer) -> list[str]:
    """Returns a table of the leaves that train: path, shape, parameters and mesh axes."""
    rows = list(trained_leaves(start.selected, placer.mesh))
    columns = ["leaf", "shape", "parameters"] + (["over"] if placer.mesh.size > 1 else [])
    return ["", *grid(columns, rows, ["parameters"]), ""]


def _rows(rows: Rows, max_length: int) -> str:
    found = rows.survey
    return (
        f"{plural(len(found.rows), 'row')} with {plural(found.tokens, 'token')}, "
        f"{found.scored_tokens:,} scored ({found.share:.0%}); "
        f"longest row {found.longest:,} of {max_length:,} tokens"
    )


def _losses(name: str, rows: Rows) -> Iterator[tuple[str, str]]:
    """Yields labels and counts of rows that were left out or cut; `name` says which rows."""
    found = rows.survey
    for reason, left in (("malformed", found.malformed), ("too long", found.too_long)):
        if left.count:
            yield (
                "left out",
                f"{plural(left.count, f'{name} row')}, {reason}: {'; '.join(left.first)}",
            )
    if found.cut:
        yield "cut", f"{plural(found.cut, f'{name} row')}, by {plural(found.cut_tokens, 'token')}"


def _undivided(weights: Mapping[str, Any], mesh: Mesh) -> list[str]:
    """Returns a warning for each mesh axis that does not divide some of the model's weights."""
    shapes = {
        path: leaf if quant.is_quantized(leaf) else leaf.shape
        for path, leaf in weights.items()
        if path.startswith("params/")
    }
    found: dict[str, dict[str, int]] = {}
    for path, dimensions in undivided(shapes, mesh).items():
        for axis, size in ((axis, each.size) for each in dimensions for axis in each.axes):
            found.setdefault(axis, {})[path] = size
    lines = []
    for axis, sizes in found.items():
        fits = [each for each in divisors(math.gcd(*sizes.values())) if each <= mesh.size]
        text = (
            f"mesh.{axis}={mesh.shape[axis]} does not divide {few(list(sizes), len(sizes))}, so it "
            f"does not split {'it' if len(sizes) == 1 else 'them'}, and each device holds more; "
            f"sizes that would: {', '.join(map(str, fits))}"
        )
        lines += labelled({"warning": text})
    return lines


def _held(start: Start) -> str:
    """Returns the sizes of the frozen leaves, the trained leaves and the optimiser state."""
    sizes = {
        "frozen": total_bytes(start.frozen) - host_bytes(start.frozen),
        "trained": total_bytes(start.shapes.trainable),
        "optimiser": total_bytes(start.shapes.opt_state),
    }
    return ", ".join(f"{name} {size_text(size)}" for name, size in sizes.items()) + (
        "; over all devices, without activations"
    )


def _quantised(frozen: Any) -> str:
    """Returns the number of parameters held in each quantised kind, or "" if there are none."""
    leaves = list(filter(quant.is_quantized, quant.by_path(frozen).values()))
    counts = {
        kind: parameters([leaf for leaf in leaves if leaf.kind == kind])
        for kind in sorted({leaf.kind for leaf in leaves})
    }
    return ", ".join(f"{count:,} parameters in {kind}" for kind, count in counts.items())
