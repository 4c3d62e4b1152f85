"""Programs compiled from shapes: what they take, and what a compiler's refusal says."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxtune import sharding
from jaxtune.runs.plan import programs
from jaxtune.runs.plan.programs import WITHOUT_TRITON, Program

GIB = 1 << 30
REFUSAL = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
    "Used 18.25G of 15.75G hbm. Exceeded hbm capacity by 2.50G."
)


def refusing(*outcomes):
    """A lowered program, each of whose compilations returns, or raises, the next outcome."""
    left, passed = list(outcomes), []

    def compile(options):
        passed.append(options)
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return SimpleNamespace(compile=compile, passed=passed)


def mesh(platform: str, at_hand: bool = False) -> SimpleNamespace:
    device = jax.devices()[0] if at_hand else SimpleNamespace(platform=platform)
    return SimpleNamespace(devices=np.array([device], object), size=1)


@pytest.mark.parametrize(
    "text, size",
    [
        (REFUSAL, int(18.25 * GIB)),
        ("Used 900.5M of 512.00M hbm.", int(900.5 * 2**20)),
        ("Used 1.1T of 95.74G hbm.", int(1.1 * 2**40)),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (16.03G) "
            "exceeds available HBM (15.75G).",
            int(16.03 * 2**30),
        ),
    ],
)
def test_a_tpu_s_refusal_says_what_it_would_take(text, size):
    lowered = refusing(jax.errors.JaxRuntimeError(text))
    assert programs._compiled(lowered, mesh("tpu")) == (None, size)


def test_a_described_gpu_is_compiled_for_without_triton_if_need_be():
    lowered = refusing(jax.errors.JaxRuntimeError("INTERNAL: no tiling"), "compiled")
    assert programs._compiled(lowered, mesh("cuda")) == ("compiled", 0)
    assert lowered.passed == [None, WITHOUT_TRITON]


@pytest.mark.parametrize("where", [mesh("tpu"), mesh("cpu", at_hand=True)])
def test_other_errors_are_raised_at_once(where):
    lowered = refusing(jax.errors.JaxRuntimeError("INTERNAL: a defect"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        programs._compiled(lowered, where)
    assert lowered.passed == [None]


def test_what_a_peak_consists_of():
    found = Program("train", {}, 1000, {}, 0.0, 0, {}, 0.0, None)
    held = {"base": 500, "trained": 100, "optimiser": 200, "batch": 20}
    items = found.itemised(held, beside=10, gradients=True)
    assert items.items == {**held, "gradients": 100, "activations": 90}
    assert items.peak_bytes == 1010 == sum(items.items.values())
    # A compiler that reuses memory may report less than all that is held.
    few = found.itemised({**held, "base": 700}, beside=0, gradients=True)
    assert (few.items["gradients"], few.items["activations"]) == (0, 0)
    assert few.peak_bytes == sum(few.items.values()) == 1020


@pytest.mark.slow
def test_programs_of_a_run(whole):
    _, plan = whole
    assert [each.name for each in plan.programs] == ["train", "evaluate", "prefill", "decode"]
    train, evaluate, prefill, decode = plan.programs
    assert train.sizes == {"rows": 4, "tokens": 64, "micro-batches": 1} | {
        "scored": train.sizes["scored"]
    }
    assert evaluate.sizes["rows"] == 4
    assert {"rows": 3, "new": 5}.items() <= prefill.sizes.items()
    for each in plan.programs:
        assert sum(each.items.values()) == each.peak_bytes
        assert min(each.items.values()) >= 0 and each.flops > 0 and not each.sent
        assert each.outputs is not None
    held = plan.shapes.held
    for each in plan.programs:  # the optimiser's state is held while the others run
        assert {name: each.items[name] for name in held} == held
    assert "gradients" in train.items and "gradients" not in evaluate.items
    assert 0 < decode.items["cache"] < decode.peak_bytes
    # Three passes, of which one recomputes activations: more than three forward passes.
    assert train.flops > 2 * evaluate.flops


@pytest.mark.slow
def test_what_a_run_holds_is_what_its_arrays_take(whole):
    """Beside the true arrays: the base without adapters, the adapters, Adam's two moments."""
    planner, plan = whole
    model, variables = planner.assembly.model()
    assert model == plan.shapes.model
    start = planner.assembly.start(variables, planner.assembly.optimizer(plan.total))
    frozen, state = start.frozen, start.state()
    held = plan.shapes.held
    assert held["base"] == sum(leaf.nbytes for leaf in jax.tree.leaves(frozen))
    assert held["trained"] == sum(leaf.nbytes for leaf in jax.tree.leaves(state.trainable))
    assert held["optimiser"] == sharding.device_bytes(state.replace(frozen=None)) - held["trained"]
    assert 0 <= held["optimiser"] - 2 * held["trained"] < 200  # and counters


@pytest.mark.slow
def test_more_rows_take_more(planner):
    peaks = {}
    for rows in (4, 16):
        (program,) = planner.plan({"batch.rows": rows}).programs
        assert program.sizes["rows"] == rows
        peaks[rows] = program
    few, many = peaks.values()
    assert many.peak_bytes > few.peak_bytes and many.flops == pytest.approx(4 * few.flops, rel=0.01)
    assert many.items["activations"] > few.items["activations"]
    assert many.items["batch"] == 4 * few.items["batch"]
    assert many.items["base"] == few.items["base"]
