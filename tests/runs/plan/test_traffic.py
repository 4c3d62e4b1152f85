"""Bytes over the wire of known programs, compiled for eight devices and written by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtune.display.errors import UserError
from jaxtune.runs.plan import traffic
from tests import devices

# A loop of 14 in steps of two, whose counter begins at a constant of the caller and whose condition
# is a fusion. In it a gather that a TPU runs beside three fusions, and a permute of which only
# seven devices of eight take part; after it a fused reduce-scatter.
TPU = (Path(__file__).parent / "tpu.hlo").read_text()


@pytest.fixture(scope="module")
def programs() -> dict[str, str]:
    """Texts of programs that XLA has compiled for eight devices, by name."""
    command = [sys.executable, "-m", "tests.runs.plan.programs"]
    environment = devices.environment(8) | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "kind", "times", "sent"),
    [
        # 256 × 128 floats of four devices: each sends its quarter to three others, five times.
        ("gather_in_scan", "all-gather", 5, 5 * 3 * (64 * 128 * 4)),
        ("nested", "collective-permute", 21, 21 * 32 * 16 * 4),
        ("psum", "all-reduce", 1, 2 * 64 * 32 * 4 * 7 // 8),
        ("scatter", "reduce-scatter", 1, 64 * 32 * 4 // 2),
        ("transposed", "all-to-all", 1, 32 * 16 * 4 * 3 // 4),
        ("branches", "all-reduce", 1, 2 * 16 * 8 * 4 * 3 // 4),  # the larger of the two
    ],
)
def test_what_xla_compiled_for_eight_devices(programs, name, kind, times, sent):
    found = traffic.measure(programs[name])
    [only] = found.collectives
    assert (only.kind, only.times, only.total) == (kind, times, sent)
    assert found.by_kind == {kind: sent} and found.total == sent and not found.unknown


def test_loops_are_counted_without_the_count_that_xla_prints(programs):
    for name, times in (("gather_in_scan", 5), ("nested", 21)):
        text = programs[name].replace("known_trip_count", "other")
        [only] = traffic.measure(text).collectives
        assert only.times == times


def test_a_loop_of_unknown_count_is_marked(programs):
    found = traffic.measure(programs["unknown"])
    [only] = found.unknown
    assert only.times is None and found.total == only.bytes == 2 * 8 * 8 * 4 * 3 // 4


def test_the_largest_come_first_with_their_places():
    found = traffic.measure(TPU)
    assert [each.total for each in found.collectives] == [802816, 28672, 14336]
    assert found.collectives[0].place == "jit(step)/layers/mlp/gate"
    assert found.collectives[0].shape == "u4[1,8,64,64]"


def test_text_that_is_no_program_is_refused():
    with pytest.raises(UserError, match="compiled XLA module"):
        traffic.measure("module @jit_step {}")


def test_a_tpus_forms():
    by_name = {each.name: each for each in traffic.measure(TPU).collectives}
    assert by_name.keys() == {"all-gather.1", "collective-permute-start.1", "all-reduce.1"}
    gather, permute = by_name["all-gather.1"], by_name["collective-permute-start.1"]
    assert (gather.times, gather.bytes) == (7, 8 * 64 * 64 // 2 * 7)
    assert (permute.times, permute.bytes) == (7, 256 * 8 * 2)
    scatter = by_name["all-reduce.1"]
    assert (scatter.kind, scatter.bytes) == ("reduce-scatter", 512 * 8 * 4 * 7 // 8)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2),
        ("replica_groups={}", 8),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", 2),
    ],
)
def test_the_forms_of_groups(groups, devices):
    text = TPU.replace("replica_groups=[1,8]<=[8]", groups)
    [found] = [each for each in traffic.measure(text).collectives if each.name == "all-reduce.1"]
    assert (found.group, found.bytes) == (devices, 512 * 8 * 4 * (devices - 1) // devices)
