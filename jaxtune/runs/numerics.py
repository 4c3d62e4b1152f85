"""What the numbers of a run are on its devices: how exact, and whether a resumed run has the same.

A CPU or a TPU computes the same bits from the same program every time. On a GPU two things may
differ: scatters, and the gradients of fused attention, add in any order; and XLA times several
kernels when it compiles, so that another start may choose others. `model.deterministic` excludes
both. Without it, the choices of kernels are kept with the run.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxtune.display.columns import labelled
from jaxtune.models.paligemma import Model
from jaxtune.quant.precision import GPUS, RULES, chosen
from jaxtune.runs.plan.published import chip_of

KERNELS = "kernels"  # folder of a run with the choices of kernels
NEVER = 1e9  # seconds of compilation from which on a program itself would be kept
TF32 = 8.0  # compute capability of the first GPUs with TF32


def told(model: Model, mesh: Mesh) -> list[str]:
    """Returns lines on the precision of a model's products and on what a resumed run computes."""
    device = mesh.devices.flat[0]
    return labelled({"precision": _products(model, device), "resuming": _resumed(model, device)})


def _products(model: Model, device: Any) -> str:
    name = chosen(model.precision, model.dtype)
    rule = RULES[name]
    wide = f"float32 {rule.told(device.platform, _capability(device) >= TF32)} ({name})"
    if model.dtype != jnp.float32:
        return f"products of {jnp.dtype(model.dtype).name}, summed in float32; of {wide}"
    chip = chip_of(device.device_kind)
    times = chip.peak("float32") / chip.peak("float32", rule) if chip else 1
    cost = f", {times:.2g} times the work of precision='default'" if times > 1 else ""
    return f"products of {wide}{cost}"


def _resumed(model: Model, device: Any) -> str:
    if device.platform not in GPUS:
        return "to the bit"
    if model.deterministic:
        return "to the bit on such GPUs; sums in one order and untimed kernels make steps slower"
    return (
        f"up to rounding: sums may be in another order, by the same kernels ({KERNELS}/); "
        "model.deterministic=True is to the bit, and slower"
    )


def _capability(device: Any) -> float:
    return float(getattr(device, "compute_capability", TF32))


@contextlib.contextmanager
def kept_kernels(workdir: Path) -> Iterator[None]:
    """Keeps XLA's choices of GPU kernels in the directory of a run, from which it takes them again.

    Where the user keeps compiled programs (`JAX_COMPILATION_CACHE_DIR`), JAX has the choices there.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    if jax.default_backend() not in GPUS or before[names[0]]:
        yield
        return
    for name, value in zip(names, (str(workdir / KERNELS), NEVER), strict=True):
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
