"""What many processes that write one checkpoint need of each other."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.checkpoint.formats.safetensors import CheckpointError


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Fail on every process if the block does on one: the others would wait for it forever."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = np.array(failure is not None)
    if jax.process_count() > 1:
        failed = multihost_utils.process_allgather(failed)
    if failure is not None:
        raise failure
    if failed.any():
        raise CheckpointError(
            f"process {np.argmax(failed)} could not write the checkpoint: its message says why"
        )


def gathered(array: jax.Array | np.ndarray) -> np.ndarray:
    """A whole array on this host; all processes ask for the same arrays in the same order."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
