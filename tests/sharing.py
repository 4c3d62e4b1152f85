"""Lets the processes of one command share what they compile, as each would compile all of it.

    python tests/sharing.py launch.py train …

runs a script so. A program that several processes run together is compiled by the first of them,
and the others read it from the persistent cache. JAX by itself has other keys in each process, and
only the first one writes.

What libraries of C++ print goes to standard error, so that standard output has a command's lines
alone: Gloo reports each connection on standard output, from several threads at once.
"""

import os
import runpy
import sys
import time
from pathlib import Path

PATIENCE = 60  # seconds to wait for the first process; then this one compiles as well
PAUSE = 0.01  # seconds between two looks at the cache


def share() -> None:
    """Makes this process, one of several, use what the first one compiles."""
    from jax._src import cache_key, compilation_cache, compiler, distributed

    read = compiler._cache_read

    def read_once_written(name, key, options, backend, devices):
        end = time.monotonic() + PATIENCE
        joint = len({device.process_index for device in devices}) > 1
        while (
            joint
            and distributed.global_state.process_id != 0
            and not compilation_cache.is_executable_in_cache(backend, key)
            and time.monotonic() < end
        ):
            time.sleep(PAUSE)
        return read(name, key, options, backend, devices)

    # The topology, which is what differs, comes with the devices of the compile options.
    cache_key._hash_accelerator_config = cache_key._hash_devices
    compiler._cache_read = read_once_written


def keep_output_apart() -> None:
    """Leaves standard output to Python; what others write to its descriptor goes to the errors."""
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).absolute().parent)
    share()
    keep_output_apart()
    runpy.run_path(sys.argv[0], run_name="__main__")
