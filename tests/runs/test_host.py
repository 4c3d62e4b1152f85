"""Runs whose embedding stays on the host: the same losses, and less of it on devices."""

import contextlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxtune.assembly.assemble import Assembly
from jaxtune.assembly.weights import with_embedding_on_host
from jaxtune.config import load as configs
from jaxtune.config.fields import ConfigError
from jaxtune.display.progress import Quiet
from jaxtune.export.targets import Wanted
from jaxtune.export.tuned import restored
from jaxtune.export.verify import random_rows
from jaxtune.export.write import write_verified
from jaxtune.runs.ends import RunError
from jaxtune.runs.plan.plan import plan
from jaxtune.runs.plan.programs import Shapes
from jaxtune.runs.plan.targets import at_hand
from jaxtune.runs.rows import RunRows
from jaxtune.runs.run import fit
from jaxtune.workdir.checkpoints import Checkpoints
from tests import tiny


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    """A checkpoint whose head is not its embedding."""
    return tiny.write_base(
        tmp_path_factory.mktemp("untied"), model_type="llama", tie_word_embeddings=False
    )


@pytest.fixture
def make(untied, rows):
    """`make("host", …)` is a config with the embedding there, and changes to its sections."""

    def config(where, base=untied, **changes):
        model = {"path": str(base), "embedding": where}
        asked = {"eval": {"holdout": 8, "answers": 2, "every": 4}, "log": {"every": 1}}
        short = {"generate": {"max_new_tokens": 2}}
        return configs.parse(tiny.settings(base, rows, **asked, **short, model=model, **changes))

    return config


@pytest.mark.slow
def test_a_run_ends_as_if_it_were_on_the_device(make, tmp_path):
    said, left = [], []

    class Heard(Quiet):
        def say(self, text=""):
            said.append(text)

    for where in ("device", "host"):
        fit(make(where), tmp_path / where, progress=Heard())
        lines = map(json.loads, (tmp_path / where / "metrics.jsonl").read_text().splitlines())
        adapter = load_file(tmp_path / where / "export/adapter/adapter_model.safetensors")
        left.append((list(lines), adapter))
    (lines, adapter), (others, other) = left
    # Two programs, in which XLA may add in another order.
    for line, ours in zip(lines, others, strict=True):
        assert ours.pop("kind") == line.pop("kind")
        assert ours == pytest.approx(line, rel=1e-6)
    assert other.keys() == adapter.keys()
    for name in adapter:
        np.testing.assert_allclose(other[name], adapter[name], rtol=1e-4, atol=1e-7)
    assert sum("on the host; a step takes" in line for line in said) == 1


@pytest.mark.slow
def test_the_run_is_exported_later(make, tmp_path):
    config = make("host")
    fit(config, tmp_path / "run", progress=Quiet(), plan=False)
    wanted = Wanted(tmp_path / "again")
    assembly = Assembly.of(config, "2026-01-01")
    tuned = restored(assembly, Checkpoints(tmp_path / "run/checkpoints"), 4)
    write_verified(tuned, wanted, random_rows(tuned.model), Quiet()).check()


@pytest.mark.slow
def test_a_plan_counts_it_where_it_is(make):
    size, bases = 512 * 32 * 4, {}
    for where in ("device", "host"):
        assembly = Assembly.of_headers(make(where), "2026-01-01")
        with contextlib.ExitStack() as stack:
            rows = RunRows.read(assembly, Quiet(), stack)
            found = plan(assembly, rows, at_hand(), Quiet())
        bases[where] = {each.name: each.items["base"] for each in found.programs}
    for name in ("train", "evaluate"):
        assert bases["device"][name] - bases["host"][name] == size
    for name in ("prefill", "decode"):
        assert bases["device"][name] == bases["host"][name]


OTHER_TOKENS = """
def get_objective():
    return lambda forward, batch: forward.cross_entropy(batch.replace(tokens=batch.tokens ^ 1))
"""


def test_an_objective_that_looks_up_other_tokens_is_told_what_it_takes(make, tmp_path):
    file = tmp_path / "objective.py"
    file.write_text(OTHER_TOKENS)
    config = make("host", objective=str(file), steps=1)
    with pytest.raises(RunError, match=r"(?s)step 0: .* is nan .*try model.embedding=\"device\""):
        fit(config, tmp_path / "run", progress=Quiet(), plan=False)


def test_it_is_refused_for_several_hosts_that_are_not_at_hand():
    devices = [SimpleNamespace(process_index=process) for process in (0, 0, 1, 1)]
    with pytest.raises(ConfigError, match="the run has several processes"):
        with_embedding_on_host({}, SimpleNamespace(devices=np.array(devices)))


@pytest.mark.parametrize(
    "changes, problem",
    [({"base": None}, "is also the output head"), ({"trainable": {"kind": "full"}}, "trains")],
    ids=["tied", "trains"],
)
def test_an_embedding_that_every_step_needs_is_refused(make, base, changes, problem):
    given = {"base": base} if "base" in changes else changes
    assembly = Assembly.of_headers(make("host", **given), "2026-01-01")
    reason = f'model.embedding: found "host", but the embedding {problem}, so that every step'
    with pytest.raises(ConfigError, match=re.escape(reason)):
        Shapes.of(assembly, 4)
