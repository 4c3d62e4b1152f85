"""Settings that must hold before JAX is imported, and models that many tests share."""

import os

from tests.devices import LIGHT

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", LIGHT)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would wait for work at full speed
os.environ.setdefault("TQDM_DISABLE", "1")  # transformers draws a bar for every tiny save
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may reach for the network
os.environ["COLUMNS"] = "100"  # texts wrap alike in every terminal and in every worker

import functools
import gc
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.objects import machine, objects, s3, s3_server  # noqa: F401 (fixtures for all tests)

MAPPED = 20_000  # pieces of memory; a module adds up to some thousands


def pytest_collection_finish():
    """Take what imports and collecting made out of garbage collection: it stays to the end.

    Tracing makes objects by the million that are not garbage, so that collections are rarer.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def pytest_configure(config):
    """Share what is compiled among the workers and the processes that tests start."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:  # a worker's, from the process that started it
        return
    programs = tempfile.mkdtemp(prefix="jaxtune-tests-")
    config.add_cleanup(lambda: shutil.rmtree(programs, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Let compiled programs go before they are too many; until then, modules share them.

    Each maps memory in pieces, of which Linux gives a process 65,530 before it ends in a crash.
    """
    yield
    if "jax" in sys.modules and mapped() > MAPPED:
        sys.modules["jax"].clear_caches()


def mapped() -> int:
    """How many pieces of memory this process has mapped; where no file tells, more than any."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MAPPED + 1


def pytest_terminal_summary(terminalreporter):
    """Print how near each kind of comparison came: the largest figure that its tests recorded."""
    reached: dict[str, float] = {}
    for report in terminalreporter.stats.get("passed", []):
        test = report.nodeid.split("::")[-1].split("[")[0]
        for name, value in report.user_properties:
            label = f"{test}, {name}"
            reached[label] = max(value, reached.get(label, value))
    for label, value in reached.items():
        terminalreporter.write_line(f"{label}: {value:.2g} at most")


@dataclass
class Pair:
    """A reference model, its checkpoint, and the same checkpoint as jaxtune loads it."""

    case: Any
    directory: Path
    reference: Any
    model: Any
    variables: dict

    @functools.cached_property
    def apply(self):
        import jax

        return jax.jit(self.model.apply)


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """`pair("llama-linear")` is that case of tests/reference.py, made and loaded once a session."""
    import jaxtune
    from tests import reference

    @functools.cache
    def make(name: str) -> Pair:
        case = reference.CASES[name]
        directory = tmp_path_factory.mktemp(name)
        model = reference.make(case, directory)
        return Pair(case, directory, model, *jaxtune.load(directory))

    return make


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The directory of a checkpoint that trains in a second; see tests/tiny.py."""
    from tests import tiny

    return tiny.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A file of rows for it."""
    from tests import tiny

    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
