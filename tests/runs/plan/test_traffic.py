"""Bytes over the wire of known programs, compiled for eight devices and written by hand."""

import json
import subprocess
import sys

import pytest

from jaxtune.display.errors import UserError
from jaxtune.runs.plan import traffic
from tests import devices


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


# A loop of 14 in steps of two, whose counter begins at a constant of the caller and whose condition
# is a fusion. In it a gather that a TPU runs beside three fusions, and a permute of which only
# seven devices of eight take part; after it a fused reduce-scatter.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=8

%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%fused_computation.1 (param_0.1: u4[1,8,64,64]) -> (u4[1,8,64,64], u4[1,64,64,64], u32[]) {
  %param_0.1 = u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} parameter(0)
  %all-gather.1 = u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} all-gather(%param_0.1), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/layers/mlp/gate" stack_frame_id=1}
  ROOT %custom-call.1 = (u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (param_0.2: u4[1,8,64,64], param_1.2: u4[1,64,64,64]) -> u4[1,64,64,64] {
  %param_0.2 = u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} parameter(0)
  ROOT %all-gather.2 = u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} all-gather(%param_0.2), channel_id=1, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={1}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
}

%compare.inside (param_0.3: s32[], param_1.3: s32[]) -> pred[] {
  %param_0.3 = s32[]{:T(128)} parameter(0)
  %param_1.3 = s32[]{:T(128)} parameter(1)
  ROOT %less = pred[]{:T(512)} compare(%param_0.3, %param_1.3), direction=LT
}

%condition (wide.param.1: (s32[], u4[1,8,64,64], /*index=2*/bf16[256,8])) -> pred[] {
  %wide.param.1 = (s32[]{:T(128)}, u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, /*index=2*/bf16[256,8]{1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0
  %limit = s32[]{:T(128)} constant(14)
  ROOT %test = pred[]{:T(512)} fusion(%counter, %limit), kind=kLoop, calls=%compare.inside
}

%body (wide.param.2: (s32[], u4[1,8,64,64], bf16[256,8])) -> (s32[], u4[1,8,64,64], bf16[256,8]) {
  %wide.param.2 = (s32[]{:T(128)}, u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, bf16[256,8]{1,0}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%wide.param.2), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%counter.1, %one)
  %after = s32[]{:T(128)} add(%next, %one)
  %codes = u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} get-tuple-element(%wide.param.2), index=1
  %start = (u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)S(1)}, u32[]{:S(2)}) fusion(%codes), kind=kCustom, calls=%fused_computation.1
  %whole = u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)S(1)} get-tuple-element(%start), index=1
  %middle = u4[1,64,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} fusion(%codes, %whole), kind=kOutput, calls=%async_collective_fusion.2
  %rows = bf16[256,8]{1,0} get-tuple-element(%wide.param.2), index=2
  %collective-permute-start.1 = (bf16[256,8]{1,0}, bf16[256,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%rows), channel_id=33, source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,7}}
  %moved = bf16[256,8]{1,0} collective-permute-done(%collective-permute-start.1)
  ROOT %state = (s32[]{:T(128)}, u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, bf16[256,8]{1,0}) tuple(%after, %codes, %moved)
}

%all-reduce-scatter.1 (param_0.4: f32[512,8]) -> f32[64,8] {
  %param_0.4 = f32[512,8]{1,0} parameter(0)
  %all-reduce.1 = f32[512,8]{1,0} all-reduce(%param_0.4), channel_id=9, replica_groups=[1,8]<=[8], use_global_device_ids=true, to_apply=%add.1
  %zero = s32[] constant(0)
  ROOT %part = f32[64,8]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={64,8}
}

ENTRY %main.1 (codes.1: u4[1,8,64,64], rows.1: bf16[256,8], sums.1: f32[512,8]) -> f32[64,8] {
  %codes.1 = u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)} parameter(0)
  %rows.1 = bf16[256,8]{1,0} parameter(1)
  %sums.1 = f32[512,8]{1,0} parameter(2)
  %begin = s32[]{:T(128)} constant(0)
  %copy.1 = s32[]{:T(128)} copy(%begin)
  %tuple.1 = (s32[]{:T(128)}, u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, bf16[256,8]{1,0}) tuple(%copy.1, %codes.1, %rows.1)
  %while.1 = (s32[]{:T(128)}, u4[1,8,64,64]{3,2,1,0:T(64,128)(8,1)E(4)}, bf16[256,8]{1,0}) while(%tuple.1), condition=%condition, body=%body
  ROOT %fusion.9 = f32[64,8]{1,0} fusion(%sums.1), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


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
