"""What a record says of where it comes from."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from harness.measure.machine import fingerprint
from harness.measure.provenance import ROOT, git_state, provenance


def test_all_that_is_promised(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = provenance(["bench.py", "run", "quick"])
    assert json.loads(json.dumps(found)) == found
    assert set(found) >= {"packages", "git", "cpu", "gpu", "driver", "platform", "command"}
    assert found["command"] == ["bench.py", "run", "quick"]
    assert found["packages"]["torch"]
    assert found["environment"]["OMP_NUM_THREADS"] == "1"
    assert found["machine"] == fingerprint()


def test_torch_is_not_imported():
    code = "import sys, harness.measure.provenance as p; p.provenance([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def git(root, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "harness" / "measure").mkdir(parents=True)
    (tmp_path / "harness" / "measure" / "provenance.py").write_text("old")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_revision_and_dirty_state(repository):
    revision = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"revision": revision, "dirty": False}
    (repository / "results").mkdir()
    (repository / "results" / "new").touch()  # what is not tracked is no change of the sources
    assert git_state(repository) == {"revision": revision, "dirty": False}
    (repository / "harness" / "measure" / "provenance.py").write_text("new")
    assert git_state(repository) == {"revision": revision, "dirty": True}


def test_installed_copy_inside_another_repository_has_no_revision(repository):
    packages = repository / "site-packages"
    (packages / "harness" / "measure").mkdir(parents=True)
    (packages / "harness" / "measure" / "provenance.py").touch()
    assert git_state(packages) is None


def test_without_git(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(ROOT) is None
