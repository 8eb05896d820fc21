"""The machine's fingerprint, what nvidia-smi says, and the lock that keeps timings apart."""

from __future__ import annotations

import os
import re

import pytest

from harness.errors import BenchError
from harness.measure import machine as machines
from harness.measure.machine import LOCK_NAME, conditions, cpu_name, fingerprint, machine, machine_lock, nvidia_smi


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
