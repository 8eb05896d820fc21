"""The command line as a newcomer meets it: wrong names, missing data, help."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import ROOT, bench, command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["run"], "say what to run"),
        (["run", "--methods", "tsm2", "--datasets", "glyphs"], "did you mean 'tsm'"),
        (["run", "--methods", "tsn", "--datasets", "glyfs"], "did you mean 'glyphs'"),
        (["run", "quick", "--set", "protocol.selektion=last"], "did you mean 'selection'"),
        (["run", "quick", "--set", "nonsense"], "KEY=VALUE"),
        (["run", "quick", "--set", "protocol.threads=two"], "protocol.threads='two': expected a valid integer"),
        (["run", "quick", "--set", "protocol.budgets=half"], "protocol.budgets=('half',): expected a valid number"),
        (["run", "quick", "--batches", "x"], "comma-separated numbers"),
        (["run", "--methods", "tsn", "--datasets", "glyphs", "--device", "tpu"], "cpu, cuda or auto"),
        (["list", "metods"], "did you mean 'methods'"),
        (["gflops"], "--paper"),
        (["gflops", "tsn", "--size", "tinny"], "did you mean 'tiny'"),
        (["gflops", "tsn", "--resolution", "-4"], "greater than or equal to 32"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(arguments: list[str], told: str, tmp_path: Path) -> None:
    data_root = [] if arguments[0] != "run" else ["--work-dir", str(tmp_path), "--data-root", str(tmp_path)]
    done = bench(*arguments, *data_root)
    assert done.returncode == 2, done.stderr[-2000:]
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    done = bench("run", "--methods", "tsn", "--datasets", "csv:nowhere.csv", "--work-dir", str(tmp_path))
    assert done.returncode == 1
    assert "nowhere.csv does not exist" in done.stderr


def test_missing_data_of_a_real_set_is_explained(tmp_path: Path) -> None:
    done = bench(
        "run", "--methods", "tsn", "--datasets", "jester", "--data-root", str(tmp_path), "--work-dir", str(tmp_path)
    )
    assert done.returncode in (1, 2)
    assert "jester" in done.stderr and "Traceback" not in done.stderr


def test_broken_videos_are_all_named_before_training(clips_csv: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "clips"
    shutil.copytree(clips_csv.parent, folder)
    (folder / "03.mp4").unlink()
    (folder / "05.mp4").write_bytes(b"")
    (folder / "07.mp4").write_text("not a video")
    whole = (folder / "09.mp4").read_bytes()
    (folder / "09.mp4").write_bytes(whole[: len(whole) // 2])
    work = ["--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / "d")]
    done = bench("run", "--methods", "tsn", "--datasets", f"csv:{folder / 'labels.csv'}", *work)
    assert done.returncode == 1
    for name in ("03.mp4", "05.mp4", "07.mp4", "09.mp4"):
        assert name in done.stderr
    assert "08.mp4" not in done.stderr
    assert not (tmp_path / "w" / "artifacts").exists()
    check = bench("data", "check", f"csv:{folder / 'labels.csv'}", "--data-root", str(tmp_path / "d"), "--json")
    assert check.returncode == 1
    assert len(json.loads(check.stdout)["broken"]) == 4


def test_dry_run_shows_the_work_and_does_none(clips_csv: Path, tmp_path: Path) -> None:
    done = bench(
        "run", "--methods", "ar-net,adafocus-v2", "--datasets", f"csv:{clips_csv}", "--dry-run",
        "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / "d"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "to do" in done.stdout and "ar-net" in done.stdout
    assert not (tmp_path / "w").exists()


def test_report_of_nothing_says_what_to_run(tmp_path: Path) -> None:
    done = bench("report", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert "bench.py run" in done.stderr


def test_list_as_json() -> None:
    found = json.loads(bench("list", "--json").stdout)
    assert {"tsn", "tsm", "adafocus-v2", "ar-net", "random-patch", "centre-patch"} <= set(found["methods"])
    assert {"glyphs", "glyphs-motion", "csv:PATH"} <= set(found["datasets"])


def artifact(work_dir: Path, method: str) -> Path:
    """The folder of a method's trained artifact."""
    found = [p for p in work_dir.glob("artifacts/*/artifact.json") if json.loads(p.read_text())["method"] == method]
    return found[0].parent


@pytest.mark.timeout(300)
def test_eval_of_an_artifact_gives_what_run_recorded(clips_csv: Path, undisturbed: Path, tmp_path: Path) -> None:
    done = bench(
        "eval", "--checkpoint", str(artifact(undisturbed, "tsn")), "--dataset", f"csv:{clips_csv}", "--json",
        "--dump", str(tmp_path / "dump.npz"), "--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / "d"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    points = json.loads(done.stdout)
    records = [json.loads(p.read_text()) for p in undisturbed.glob("records/evaluation/*/result.json")]
    recorded = next(r for r in records if r["method"]["name"] == "tsn")
    assert [p["metrics"] for p in points] == [p["metrics"] for p in recorded["points"]]
    assert [p["gflops"] for p in points] == [p["gflops"] for p in recorded["points"]]
    with np.load(tmp_path / "dump.npz") as arrays:
        assert arrays["p0_logits"].shape == (8, 2)


@pytest.mark.timeout(300)
def test_eval_refuses_what_does_not_fit(undisturbed: Path, tmp_path: Path) -> None:
    work = ["--work-dir", str(tmp_path / "w"), "--data-root", str(tmp_path / "d")]
    (tmp_path / "foreign.pth").write_bytes(b"x")
    done = bench("eval", "--checkpoint", str(tmp_path / "foreign.pth"), "--dataset", "glyphs", *work)
    assert done.returncode == 1
    assert "bench.py convert" in done.stderr


@pytest.mark.timeout(400)
def test_latency_report_and_compare_of_finished_results(undisturbed: Path, tmp_path: Path) -> None:
    how = ["--batch", "1,2", "--point", "full", "--min-seconds", "0.05", "--launches", "2", "--quiet-wait", "0"]
    done = bench("latency", "tsn", *how, "--work-dir", str(undisturbed), "--json")
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["median_low_ms"] <= row["median_ms"] <= row["median_high_ms"] for row in rows)
    records = [json.loads(path.read_text()) for path in (undisturbed / "records" / "latency").glob("*/result.json")]
    assert all(len(r["launches"]) == 2 and r["outputs"]["differing"] == 0 for r in records)
    assert sorted(r["batch"] for r in records) == [1, 2]
    done = bench("report", str(undisturbed), "--out", str(tmp_path / "report"))
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "TSN" in page and "http://" not in page.replace("http://www.w3.org", "")
    done = bench("compare", str(undisturbed), str(undisturbed), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    changes = json.loads(done.stdout)["changes"]
    assert changes
    assert all(c["difference"] == 0 for c in changes)


@pytest.mark.timeout(300)
def test_run_as_json_is_json(clips_csv: Path, undisturbed: Path) -> None:
    done = subprocess.run(
        [*command(clips_csv, undisturbed), "--json"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["ok"] and {c["status"] for c in found["cells"]} == {"cached"}
