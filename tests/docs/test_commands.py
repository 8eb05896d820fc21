"""Every command in a `sh` block of a Markdown file is run, in a folder with the files that the pages speak of.

`bench.py` and `pytest` run as a reader would run them, on less data: `run` gets few videos, one epoch, no
pre-training and no timing. Trainings of hours (LONG) are planned only, with `--dry-run`; commands that take minutes
run with `--slow`. What sets up an environment
(uv, tox, pre-commit) is not run here: its groups, environments and files must exist.
"""

from __future__ import annotations

import configparser
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.conftest import COLOURS, write_clip
from tests.docs.test_references import PAGES, ROOT

LESS = [
    *("--limit", "4", "--epochs", "1", "--seeds", "1", "--batches", "", "--jobs", "2", "--no-report"),
    *("--set", "protocol.initialisation=scratch", "--set", "stage.views_per_epoch=1", "--set", "protocol.budgets=0.5"),
]
LONG = ("quick", "ablation", "standard", "adafocus-v1", "uni-adafocus", "adafocus-v2-tsm", "ar-net", "tsm-plus")
"""Words of `run` commands that train for longer than a test may: suites, and methods with long recipes."""
MINUTES = ("uv run bench.py gflops --paper", "uv run bench.py gate --against", "uv run bench.py gate --glue")
"""Commands that take minutes whatever the data: only with --slow."""
SETUP = ("python3 -m pip install uv", "uv sync", "uvx")


def commands() -> Iterator[tuple[str, str]]:
    """(Page, command) of every line in a `sh` block, without comments."""
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M):
            for line in block.splitlines():
                for part in shlex.split(line, comments=True) and line.split(" #")[0].split("&&"):
                    yield str(page.relative_to(ROOT)), part.strip()


FOUND = {command: page for page, command in commands()}
RUN = [command for command in FOUND if not command.startswith(SETUP)]


def guide() -> dict[str, str]:
    """The methods of the guide, whole files, by module."""
    text = (ROOT / "docs" / "extend" / "method.md").read_text(encoding="utf-8")
    my_method, my_exits = re.findall(r'^```python\n(""".*?)^```', text, flags=re.S | re.M)
    return {"my_method": my_method, "my_exits": my_exits}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: videos and a CSV, rendered sets, results, the method of the guide as a package of its own."""
    home = tmp_path_factory.mktemp("reader")
    _videos(home / "videos")
    shutil.copy(home / "videos" / "00.mp4", home / "holiday.mp4")
    _guide(home / "plugin")
    (home / "data").symlink_to(_rendered(tmp_path_factory))
    pairs = home / "tests" / "authors" / "data"  # two of them: the recorded training step takes minutes and 10 GB
    pairs.mkdir(parents=True)
    for pair in ("v1_sth_p144", "uni_tsm_p128"):
        for suffix in (".json", ".npz"):
            shutil.copy(ROOT / "tests" / "authors" / "data" / f"{pair}{suffix}", pairs)
    run = "run --methods tsn,adafocus-v2 --datasets csv:videos/labels.csv --train split=train --test split=test"
    done = _bench(home, [*shlex.split(run), *LESS])
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] * c.startswith(MINUTES)) for c in RUN]
)
def test_command(folder: Path, command: str) -> None:
    words = shlex.split(command)
    assert words[:2] in (["uv", "run"], ["python", "-m"]), "a reader starts it with `uv run`"
    if words[2] == "pytest":
        done = _python(folder, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *words[3:]], cwd=ROOT)
    elif words[2] == "bench.py":
        done = _bench(folder, _reduced(folder, words[3:]))
    else:
        done = _python(folder, words[1:], cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_exits_take_few_lines() -> None:
    lines = len(guide()["my_exits"].splitlines())
    assert lines < 60 and f"in {lines} lines" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_some_commands_are_really_run() -> None:
    """Not all of them are planned only; and blocks are found at all."""
    verbs = {shlex.split(command)[3] for command in RUN if "bench.py" in command}
    assert {"list", "run", "report", "gflops", "convert", "parity", "eval", "predict", "data", "gate"} <= verbs
    runs = [command for command in RUN if "bench.py run" in command]
    assert 0 < sum(_is_long(command) for command in runs) < len(runs)


@pytest.mark.parametrize("command", [command for command in FOUND if command.startswith(SETUP)])
def test_set_up(command: str) -> None:
    """The groups and environments that it names exist."""
    words = shlex.split(command)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {words[i + 1] for i, word in enumerate(words) if word == "--group"} <= set(project["dependency-groups"])
    if "tox" in words:
        tox = configparser.ConfigParser()
        tox.read(ROOT / "tox.ini")
        environments = words[words.index("-e") + 1].split(",")
        assert all(f"testenv:{name}" in tox for name in environments)
        assert "tox run -e" in (ROOT / ".ci" / "run").read_text()
    assert "pre-commit" not in words or (ROOT / ".pre-commit-config.yaml").is_file()


def _is_long(command: str) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", command) for word in LONG)


def _reduced(folder: Path, words: list[str]) -> list[str]:
    """The command on what a test has time and files for."""
    if words[0] == "run":
        return [*words, "--dry-run"] if _is_long(" ".join(words)) else [*words, *LESS]
    if words[0] == "convert":
        _official(folder / words[1])
        shutil.rmtree(folder / words[words.index("--out") + 1], ignore_errors=True)
    if words[:2] == ["data", "prepare"]:
        (folder / "data" / words[2]).mkdir(exist_ok=True)
        _complete(folder / "data", words[2])
    if words[0] in ("eval", "predict"):
        if not (folder / "v1").exists():
            _official(folder / "v1.pth.tar")
            assert _bench(folder, ["convert", "v1.pth.tar", "--out", "v1"]).returncode == 0
        if words[0] == "eval":
            _activitynet(folder)
            return [*words, "--limit", "1"]
    return words


def _bench(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return _python(folder, [str(ROOT / "bench.py"), *words], cwd=ROOT if words[0] == "gate" else folder)


def _python(folder: Path, words: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "plugin"), str(ROOT)])  # the guide's package, found by its entry point
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=570, check=False
    )


def _rendered(factory: pytest.TempPathFactory) -> Path:
    """The embedded sets, rendered once for all processes of this test run."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (factory.getbasetemp() if alone else factory.getbasetemp().parent) / "rendered"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second finds them there
        done = _bench(folder.parent, ["data", "render", "glyphs", "glyphs-motion", "--data-root", str(folder)])
        assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _videos(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,label,class,split"]
    for number in range(24):
        write_clip(folder / f"{number:02}.mp4", rng, COLOURS[number % 2])
        split = "train" if number < 16 else "test"
        lines.append(f"{number:02}.mp4,{number % 2},{('red', 'blue')[number % 2]},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


def _guide(folder: Path) -> None:
    """The files of the guide, as a package that an entry point names."""
    (folder / "guide").mkdir(parents=True)
    (folder / "guide" / "__init__.py").touch()
    for name, source in guide().items():
        (folder / "guide" / f"{name}.py").write_text(source)
    info = folder / "guide-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guide\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[focusbench.methods]\nguide = guide\n")


def _official(path: Path) -> None:
    """A file as the authors save theirs, with made numbers, for the method that its name tells."""
    import torch

    from harness.authors.parity import fill

    pair = "v2_tsm_p144" if "sthv1" in path.name else "v1_actnet_p128"
    tensors: dict[str, Any] = json.loads((ROOT / "tests/authors/data" / f"{pair}.json").read_text())["tensors"]
    if pair.startswith("v1"):
        content = {part: _filled(group, fill, torch) for part, group in tensors.items()}
    else:
        content = {"state_dict": {f"module.{n}": v for n, v in _filled(tensors, fill, torch).items()}}
    torch.save(content, path)


def _filled(shapes: dict[str, Any], fill: Any, torch: Any) -> dict[str, Any]:
    return {name: torch.from_numpy(np.asarray(fill(name, shape))) for name, shape in shapes.items()}


def _activitynet(folder: Path) -> None:
    """Four videos in the layout of ActivityNet, below DATA."""
    root = folder / "DATA" / "activitynet"
    if root.exists():
        return
    (root / "videos").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a", "b", "c", "d"):
        write_clip(root / "videos" / f"{name}.mp4", rng, COLOURS[0])
    (root / "actnet_train_split.txt").write_text("a.mp4 3\nb.mp4 3\nc.mp4 4\n")
    (root / "actnet_val_split.txt").write_text("d.mp4 3\n")
    (root / "classInd.txt").write_text("".join(f"class {i}\n" for i in range(200)))


def _complete(data: Path, name: str) -> None:
    """All the list files that a card names, so that nothing is missing."""
    from harness.data.cards import dataset_card

    card = dataset_card(name)
    lines = "".join(f"class {i}\n" for i in range(card.num_classes))
    for candidates in (*card.splits.values(), card.class_files):
        if candidates:
            (data / name / candidates[0]).write_text(lines)
