"""Every remedy the doctor knows, on made breakages; and that it goes through on this machine."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from harness.commands import doctor
from harness.commands.doctor import GIB, Finding, diagnose
from harness.errors import BenchError
from harness.measure.machine import Machine

Usage = namedtuple("Usage", "total used free")


def levels(findings):
    return [finding.level for finding in findings]


def test_goes_through_here(tmp_path):
    found = diagnose(tmp_path / "work", tmp_path / "data", tmp_path)
    assert {finding.level for finding in found} <= {"ok", "warn", "fail"}
    assert all(finding.what for finding in found)
    assert all(bool(finding.remedy) == (finding.level != "ok") for finding in found)
    assert not (tmp_path / "work").exists()
    assert not list(tmp_path.iterdir())


def test_h264_works_here():
    assert any("H.264 is written and read" in finding.what for finding in doctor.check_codecs())


@pytest.mark.parametrize(("text", "level", "words"), [
    ("numpy>=2", None, ""),
    ("numpy<1", "fail", "needed is <1"),
    ("no-such-package", "fail", "is not installed"),
    ("no-such-package; sys_platform == 'nowhere'", None, ""),
])  # fmt: skip
def test_pins(text, level, words):
    found = list(doctor.check_requirement(text))
    assert levels(found) == ([level] if level else [])
    assert all(words in finding.what and text in finding.remedy for finding in found)


def test_declared_dependencies_are_known():
    assert any(text.startswith("mmengine") for text in doctor.requirements())
    assert not any("extra" in text for text in doctor.requirements())


def test_old_python(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (99, 0))
    (found,) = doctor.check_python()
    assert (found.level, found.remedy) == ("fail", "use Python 99.0 or newer")


@pytest.mark.parametrize(("versions", "expected"), [
    ({"opencv-contrib-python": "5.0"}, []),
    ({"opencv-contrib-python": "5.0", "opencv-python": "5.0"}, []),
    ({"opencv-contrib-python": "5.0", "opencv-python": "4.9"}, ["warn"]),
])  # fmt: skip
def test_opencv_wheels(monkeypatch, versions, expected):
    monkeypatch.setattr(doctor, "installed", versions.get)
    assert levels(doctor.check_opencv()) == expected


def test_failing_import_is_named_and_ends_the_list(monkeypatch):
    def load(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    (found,) = doctor.check_imports()
    assert found.level == "fail"
    assert "torchvision::nms" in found.what
    assert "together" in found.remedy


def test_gpu_that_torch_cannot_use(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "machine", lambda: Machine("CPU", 2, ("GPU A",), "470.1", "2.15"))
    _, found = doctor.check_cuda()
    assert found.level == "warn"
    assert "GPU A (driver 470.1) cannot be used" in found.what
    assert "driver" in found.remedy


def test_missing_codec(monkeypatch):
    monkeypatch.setattr(doctor, "_has_codec", lambda name, mode: name != "av1")
    found = [finding for finding in doctor.check_codecs() if finding.level != "ok"]
    assert [(f.level, f.what) for f in found] == [("warn", "FFmpeg has no decoder av1: AV1 videos cannot be read")]
    assert doctor._has_codec("av1", "r") is False


def test_lost_frames(monkeypatch):
    monkeypatch.setattr(doctor, "_round_trip", lambda: 7)
    assert "came back with 7" in next(f.what for f in doctor.check_codecs() if f.level == "fail")


def test_broken_card(monkeypatch):
    def broken():
        raise BenchError("baselines/new.py: CARD must be a literal dict")

    monkeypatch.setattr("harness.contract.registry.method_cards", broken)
    (found,) = doctor.check_methods()
    assert found.level == "fail"
    assert "baselines/new.py" in found.what


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm on this system")
def test_small_shared_memory(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB // 16, 0, GIB // 16))
    (found,) = doctor.check_shared_memory()
    assert found.level == "warn"
    assert "--shm-size" in found.remedy


@pytest.mark.parametrize(("free", "level"), [(GIB // 4, "fail"), (2 * GIB, "warn"), (50 * GIB, "ok")])
def test_disk_space(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, free))
    assert levels(doctor.check_folder(tmp_path / "not" / "yet", "--work-dir")) == [level]


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    (found,) = doctor.check_folder(tmp_path / "file" / "work", "--work-dir")
    assert found.level == "fail"
    assert found.remedy == "choose another --work-dir"


def test_busy_machine(monkeypatch):
    monkeypatch.setattr(doctor, "conditions", lambda: {"load": 0.9})
    monkeypatch.setattr(doctor, "governor", lambda: "powersave")
    assert levels(doctor.check_timing()) == ["warn", "warn"]
    monkeypatch.setattr(doctor, "conditions", lambda: {"load": 0.1})
    monkeypatch.setattr(doctor, "governor", lambda: None)
    assert levels(doctor.check_timing()) == ["ok"]


def test_weights(tmp_path):
    (tmp_path / "resnet50-19c8e357.pth").touch()
    found = {finding.what: finding for finding in doctor.check_weights(tmp_path)}
    assert found["weights of resnet50: resnet50-19c8e357.pth"].level == "ok"
    missing = found[f"no weights of mobilenet_v2 in {tmp_path}"]
    assert "mobilenet_v2-b0353104.pth" in missing.remedy
    assert levels(doctor.check_weights(tmp_path / "none")) == ["warn"]


def test_findings_are_plain():
    assert Finding("ok", "fine").remedy == ""
