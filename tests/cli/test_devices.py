"""What a process sees, the sum over all devices, and what is said if either is not as expected."""

import threading

import jax
import pytest

from jaxtune.cli import devices
from jaxtune.cli.devices import DevicesError, Kind, View

H100 = Kind("gpu", "NVIDIA H100 80GB HBM3", 8, 63_753_420_800)
TWO_HOSTS = View(1, 2, "node4", (H100,), 16, {"jaxtune": "0.1.0"})


def test_this_process_is_seen():
    view = devices.seen()
    assert (view.process, view.processes, view.total) == (0, 1, jax.device_count())
    assert [(kind.platform, kind.count) for kind in view.local] == [("cpu", jax.device_count())]
    assert view.versions["jax"] == jax.__version__
    assert devices.everyones(view)[0]["host"] == view.host


def test_the_lines_name_kinds_and_memory():
    assert devices.text(TWO_HOSTS).splitlines() == [
        "process     1 of 2, on node4",
        "devices     8 × NVIDIA H100 80GB HBM3 (gpu) with 59.38 GiB for JAX each; 16 in all "
        "processes",
    ]
    assert devices.sum_text(TWO_HOSTS, 136) == (
        "sum         136 over 16 devices, as expected (process 1 of 2)"
    )
    one = View(0, 1, "vm", (Kind("tpu", "TPU v5 lite", 1, None),), 1, {})
    assert "\ndevices     1 × TPU v5 lite; 1 in all" in devices.text(one)


def test_the_sum_is_that_of_all_devices():
    count = jax.device_count()
    assert devices.summed(60) == count * (count + 1) // 2


def test_a_wrong_sum_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "_sum", lambda: 0)
    with pytest.raises(DevicesError, match=r"the sum over .* is 0, expected"):
        devices.summed(60)


def test_a_sum_that_fails_or_hangs_is_one_message(monkeypatch):
    def fail():
        raise RuntimeError("INTERNAL: NCCL operation\n failed")

    with pytest.raises(DevicesError, match="failed: INTERNAL: NCCL operation failed; check that"):
        devices.within(60, fail)
    release = threading.Event()
    with pytest.raises(DevicesError, match="has not ended within 0 seconds; check that every host"):
        devices.within(0.01, release.wait)
    release.set()


@pytest.mark.parametrize(
    "view, expected, problem",
    [
        (TWO_HOSTS, 24, "found 16 devices in 2 processes, 8 of them in process 1 on node4; "),
        (View(0, 1, "a", (Kind("cpu", "cpu", 1, None),), 1, {}), 1, "finds no accelerator, only"),
    ],
)
def test_other_devices_than_expected_are_refused(view, expected, problem, monkeypatch):
    monkeypatch.setattr(devices, "_platforms", lambda: ["tpu", "cpu"])
    with pytest.raises(DevicesError, match=problem):
        devices.check(view, expected)
    devices.check(view, None)


def test_the_cpu_counts_where_it_is_asked_for(monkeypatch):
    view = View(0, 1, "a", (Kind("cpu", "cpu", 4, None),), 4, {})
    monkeypatch.setattr(devices, "_platforms", lambda: ["cpu"])
    devices.check(view, 4)
    devices.check(TWO_HOSTS, 16)


def test_a_platform_that_is_not_there_is_one_message(monkeypatch):
    def missing():
        raise RuntimeError("Unable to initialize backend 'cuda':\n no driver")

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(DevicesError, match=r"cannot list the devices: Unable to .* no d"):
        devices.seen()
