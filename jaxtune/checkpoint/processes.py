"""Synchronisation of several JAX processes that write one checkpoint."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxtune.checkpoint.formats.safetensors import CheckpointError


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Raises on every process if the block raises on one; the others would wait for it forever."""
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
            f"process {np.argmax(failed)} could not write the checkpoint: see its error message"
        )
