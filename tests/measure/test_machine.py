"""The machine's fingerprint, what nvidia-smi says, and the lock that keeps timings apart."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import BenchError
from harness.measure import machine as machines
from harness.measure.machine import (
    LOCK_NAME,
    WORK_LOCK_NAME,
    OthersMeter,
    at_work,
    conditions,
    cpu_name,
    fingerprint,
    machine,
    machine_lock,
    nvidia_smi,
    slowed,
    wait_until_quiet,
)


def test_fingerprint_is_stable_and_depends_on_the_parts(monkeypatch):
    first = fingerprint()
    assert re.fullmatch(r"[0-9a-f]{12}", first)
    machine.cache_clear()
    assert fingerprint() == first
    machine.cache_clear()
    monkeypatch.setattr(machines, "installed", lambda name: "0.0")
    assert fingerprint() != first
    machine.cache_clear()


def test_cpu_has_a_name():
    assert cpu_name()


def fake_nvidia_smi(folder, monkeypatch, output, status=0):
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_gpus_are_read(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, "GPU A, 595.1\\nGPU B, 595.1\\n")
    assert nvidia_smi("name", "driver_version") == [
        {"name": "GPU A", "driver_version": "595.1"},
        {"name": "GPU B", "driver_version": "595.1"},
    ]
    machine.cache_clear()
    assert (machine().gpus, machine().driver) == (("GPU A", "GPU B"), "595.1")
    machine.cache_clear()


def test_broken_driver_means_no_gpu(tmp_path, monkeypatch):
    fake_nvidia_smi(tmp_path, monkeypatch, "Failed to initialize NVML\\n", status=9)
    assert nvidia_smi("name", "driver_version") == []
    assert conditions(gpu="GPU-1")["gpu"] is None


def test_lock_keeps_a_second_holder_out_and_names_the_first(tmp_path):
    waited = []
    with (
        machine_lock("results", folder=tmp_path),
        pytest.raises(BenchError, match=rf"process {os.getpid()} on results"),
        machine_lock(folder=tmp_path, timeout_s=0.3, on_wait=waited.append),
    ):
        pytest.fail("two held the lock")
    assert len(waited) == 1
    with machine_lock(folder=tmp_path, timeout_s=0):
        pass


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), machine_lock(folder=tmp_path):
        raise KeyboardInterrupt
    with machine_lock(folder=tmp_path, timeout_s=0):
        pass


def test_lock_follows_no_link(tmp_path):
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError, match="TMPDIR"), machine_lock(folder=tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


class Cores:
    """Stands in for the time and for /proc/stat: two cores, on which others take `others` of the time."""

    def __init__(self, monkeypatch, others, own=0.0):
        self.now, self.busy, self.own, self.shares, self.mine = 100.0, 0.0, 0.0, list(others), own
        clock = SimpleNamespace(monotonic=lambda: self.now, process_time=lambda: self.own, sleep=self.sleep)
        monkeypatch.setattr(machines, "time", clock)
        monkeypatch.setattr(machines, "own_cores", lambda: {0, 1})
        monkeypatch.setattr(machines, "Path", lambda path: SimpleNamespace(read_text=self.stat))

    def sleep(self, seconds):
        share = self.shares.pop(0) if len(self.shares) > 1 else self.shares[0]
        self.now += seconds
        self.own += self.mine * seconds
        self.busy += 2 * share * seconds + self.mine * seconds

    def stat(self):
        ticks = self.busy * os.sysconf("SC_CLK_TCK") / 2
        row = f"{ticks / 2:.0f} 0 {ticks / 4:.0f} 5000 70 0 0 {ticks / 4:.0f} 0 0"  # a quarter is stolen
        return f"cpu 1 2 3 4 5 6 7 8 9 10\ncpu0 {row}\ncpu1 {row}\ncpu2 900000 0 0 0 0 0 0 0 0 0\nintr 1\n"


def test_what_others_take_of_our_cores_is_measured_without_our_own_work(monkeypatch):
    cores = Cores(monkeypatch, [0.3], own=1.0)
    meter = OthersMeter()
    cores.sleep(10)
    assert meter.share() == pytest.approx(0.3, abs=0.01)


def test_a_system_that_does_not_tell_is_not_called_busy(monkeypatch, tmp_path):
    monkeypatch.setattr(machines, "Path", lambda path: Path(tmp_path / "missing"))
    assert OthersMeter().share() is None
    assert machines.busy_reasons(None) == []


def test_a_quiet_machine_is_waited_for_and_no_longer_than_allowed(monkeypatch):
    told = []
    Cores(monkeypatch, [0.8, 0.8, 0.02])
    assert wait_until_quiet(60, on_wait=told.append).waited_s == pytest.approx(2 * machines.WINDOW_S)
    assert told == ["waiting for a quiet machine: load 0.80 per core by other processes"] * 2
    Cores(monkeypatch, [0.8])
    assert wait_until_quiet(10).waited_s == pytest.approx(10, abs=machines.WINDOW_S)
    assert wait_until_quiet(0).waited_s == pytest.approx(machines.WINDOW_S)


def test_a_look_at_a_quiet_machine_costs_no_patience(monkeypatch):
    Cores(monkeypatch, [0.02])
    assert wait_until_quiet(60).waited_s == 0


@pytest.mark.parametrize(
    ("cores", "threads", "allowed"), [(1, 1, 0.1), (2, 1, 0.2), (2, 2, 0.2), (16, 1, 0.2), (16, 8, 0.8), (16, 16, 1.6)]
)
def test_what_others_may_take_follows_from_the_threads_that_are_timed(cores, threads, allowed):
    for taken, quiet in ((allowed - 0.05, True), (allowed + 0.05, False)):
        assert (machines.busy_reasons(taken / cores, cores=cores, threads=threads) == []) is quiet


def test_a_gpu_with_other_work_is_waited_for(monkeypatch):
    Cores(monkeypatch, [0.0])
    monkeypatch.setattr(machines, "nvidia_smi", lambda *fields, gpu: [{"utilization.gpu": "97"}])
    quiet = wait_until_quiet(3, gpu="0")
    assert quiet.waited_s >= 3
    assert quiet.gpu_others == 0.97


def test_the_tail_of_our_own_work_on_a_gpu_is_not_anothers(monkeypatch):
    """A GPU's utilization is an average over up to a second; our last launch may be in it."""
    cores, ended = Cores(monkeypatch, [0.0]), 100.0
    shown = lambda: "97" if cores.now < ended + 1.0 else "0"  # noqa: E731
    monkeypatch.setattr(machines, "nvidia_smi", lambda *fields, gpu: [{"utilization.gpu": shown()}])
    assert wait_until_quiet(60, gpu="0") == machines.Quiet(0.0, 0.0)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("0x0000000000000000", []),
        ("0x0000000000000001", []),
        ("0x0000000000000004", ["GPU at its power cap"]),
        ("0x0000000000000028", ["GPU slowed by hardware", "GPU slowed by heat"]),
        ("[N/A]", []),
    ],
)
def test_throttling_of_a_gpu_is_read(flags, words):
    assert slowed({}, {"gpu": {"clocks_throttle_reasons.active": flags}}) == words


def test_throttling_of_the_processor_is_read():
    assert slowed({"cpu_throttled": 3}, {"cpu_throttled": 3, "gpu": None}) == []
    assert slowed({"cpu_throttled": 3}, {"cpu_throttled": 4}) == ["processor throttled by heat"]
    assert slowed({"cpu_throttled": None}, {"cpu_throttled": None}) == []


def test_a_timing_sees_trainings_of_other_folders_and_does_not_wait_for_ever(tmp_path):
    waited = []
    with at_work("elsewhere", folder=tmp_path), at_work("there too", folder=tmp_path):
        with machine_lock(folder=tmp_path, patience_s=0.3, on_wait=waited.append) as beside:
            assert beside == f"process {os.getpid()} on there too"
        assert waited == [f"waiting until process {os.getpid()} on there too has finished its work on this machine"]
    with machine_lock(folder=tmp_path, patience_s=0) as beside:
        assert beside is None


def test_a_training_waits_for_a_timing_unless_it_is_to_stop(tmp_path):
    waited = []
    with (
        machine_lock("results", folder=tmp_path),
        at_work(folder=tmp_path, on_wait=waited.append, stop=lambda: bool(waited)),
    ):
        assert waited == [f"waiting until process {os.getpid()} on results has finished timing on this machine"]


def test_a_training_needs_no_lock(tmp_path):
    (tmp_path / WORK_LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with at_work(folder=tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
