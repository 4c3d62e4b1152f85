"""The summary of a run that ended: what it did, in what time and memory."""

import sys
from collections.abc import Mapping
from typing import Any

import jax

from jaxtune.assembly.state import Start, parameters
from jaxtune.data.loader import Loader
from jaxtune.display.columns import labelled, size_text
from jaxtune.display.escapes import plural
from jaxtune.display.progress import duration
from jaxtune.runs.tally import Tally


def summary_of(tally: Tally, loader: Loader, start: Start, done: int, total: int) -> dict[str, Any]:
    """Returns the counts, losses, sizes and times of a run after `done` of `total` steps."""
    return {
        "steps": done,
        "epochs": done / loader.steps_per_epoch,
        "stopped_early": done < total,
        "first_loss": tally.first_loss,
        "eval_loss_before": tally.before,
        "eval_loss": tally.best_loss,
        "eval_step": None if tally.best_loss is None else tally.best_step,
        "tokens": tally.tokens,
        "scored_tokens": tally.scored,
        "examples": tally.examples,
        "trained_parameters": parameters(start.selected),
        "parameters": parameters([start.selected, start.frozen]),
        "seconds": round(tally.seconds, 1),
        "tokens_per_second": round(tally.tokens / max(tally.seconds, 1e-9), 1),
        "memory": memory(),
        "devices": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
    }


def ending(summary: Mapping[str, Any]) -> str:
    """Returns a few lines that sum up a finished run, from the content of summary.json."""
    lines = {
        "done": f"{plural(summary['steps'], 'step')} in {duration(summary['seconds'])}, "
        f"{summary['tokens_per_second']:,.0f} tokens/s"
        + (" (stopped early: no recent improvement)" if summary["stopped_early"] else ""),
        "memory": f"peak {size_text(summary['memory']['bytes'])} ({summary['memory']['of']})",
    }
    if summary["eval_loss"] is not None:
        lines["held-out"] = (
            f"loss {summary['eval_loss_before']:.4f} before training, "
            f"best {summary['eval_loss']:.4f} after step {summary['eval_step']:,}"
        )
    lines["exported"] = summary["exported"]
    return "\n".join(labelled(lines))


def memory() -> dict[str, Any]:
    """Returns the peak memory in bytes: of the fullest device, or else of this process.

    It is None for a process on Windows, whose peak the standard library does not tell.
    Devices such as CPUs that do not count their memory are left out.
    """
    counted = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in counted if "peak_bytes_in_use" in stats]
    if peaks:
        return {"bytes": max(peaks), "of": "the fullest device"}
    return {"bytes": _process_peak(), "of": "this process"}


def _process_peak() -> int | None:
    """Returns the largest resident size of this process in bytes, or None on Windows."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
