"""Bad input of every kind through the command line: refused before any work, in a line or two that say what to do.

In-process, so that a hundred cases share one import. Lists, tables and videos: test_bad_data.py.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

import bench
import harness.commands.listing
from tests.commands.conftest import ROOT

RUN = "run --methods tsn --datasets csv:{csv} --dry-run"


def variant(settings: str, method: str = "tsn") -> str:
    return f"run --methods '{method}[{settings}]' --datasets csv:{{csv}} --dry-run"


WRONG: list[tuple[str, str]] = [
    # what to run
    ("run", "say what to run"),
    ("run quik", "did you mean 'quick'"),
    ("run ''", "unknown suite ''"),
    ("run --methods '' --datasets glyphs --dry-run", "--methods '' names no method"),
    ("run --methods , --datasets glyphs --dry-run", "names no method"),
    ("run --methods tsn --datasets '' --dry-run", "--datasets '' names no data set"),
    ("run --methods tsn2 --datasets glyphs --dry-run", "did you mean 'tsn'"),
    ("run --methods tsn --datasets glyfs --dry-run", "did you mean 'glyphs'"),
    ("run --methods tsn --datasets csv: --dry-run", "needs a path"),
    ("""run --methods tsn --datasets '"csv:a,b.csv' --dry-run""", "ends with a quote"),
    # names with settings
    ("run --methods 'tsn[' --datasets glyphs --dry-run", "settings stand at the end"),
    ("run --methods '[a=1]' --datasets glyphs --dry-run", "unknown method ''"),
    ("run --methods 'tsn[frame=8]' --datasets glyphs --dry-run", "did you mean 'frames'"),
    ("run --methods 'tsn[frames]' --datasets glyphs --dry-run", "expected setting=value"),
    ("run --methods 'tsn[frames=1,frames=2]' --datasets glyphs --dry-run", "twice"),
    ("run --methods 'tsn[num_classes=3]' --datasets glyphs --dry-run", "the data set fixes"),
    (variant("test_frames=1,2"), "a list stands in brackets"),
    (variant("test_frames=1"), "test_frames=1: expected a list"),
    (variant("test_frames=[0]"), "greater than or equal to 1"),
    (variant("dropout=2"), "tsn[dropout=2]: dropout=2: expected less than 1"),
    (variant("dropout=-1"), "dropout=-1: expected greater than or equal to 0"),
    (variant("dropout=nan"), "dropout='nan': expected a valid number"),
    (variant("frames=0"), "frames=0: expected greater than or equal to 1"),
    (variant("frames=8.5"), "frames=8.5: expected a valid integer"),
    (variant("frames=true"), "frames=True: expected a valid integer"),
    (variant("frames=99999999999"), "expected less than or equal to"),
    (variant("share=-1"), "share=-1: expected greater than 0"),
    (variant("share=0.001"), "leaves 0 of"),
    (variant("backbone=nosuch"), "unknown backbone 'nosuch'"),
    (variant("resize=nearer"), "did you mean 'nearest'"),
    (variant("shares=[1,2,0.5]", "ar-net"), "expected less than or equal to 1"),
    (variant("shares=[1]", "ar-net"), "backbones but 1 shares"),
    (variant("backbones=[restiny,restiny,restiny]", "ar-net"), "take quotes of their own"),
    (variant("resize=foo", "ar-net"), "unknown resize 'foo'"),
    (variant("policy=foo", "ar-net"), "unknown backbone 'foo'"),
    (variant("cost_weight=-1", "ar-net"), "greater than or equal to 0"),
    (variant("policy_hidden=-1", "adafocus-v2"), "policy_hidden=-1"),
    (variant("glance_side=-5", "adafocus-v2"), "glance_side=-5"),
    (variant("glance_side=100000", "adafocus-v2"), "glance_side=100000"),
    (variant("glance_side=1000", "adafocus-v2"), "glance_side 1000 is larger than the frames"),
    (variant("exit_every=-1", "adafocus-v2"), "exit_every=-1"),
    (variant("exit_score=x", "adafocus-v2"), "unknown exit_score 'x'"),
    (variant("patch_size=0", "adafocus-v2"), "patch_size=0"),
    (variant("patch_size=8", "adafocus-v2"), "patch_size 8 is too small"),
    (variant("patch_size=999", "adafocus-v2"), "patch_size 999 is larger than the frames"),
    (variant("glance_loss=nosuch", "adafocus-v2"), "unknown glance_loss 'nosuch'"),
    (variant("order=[0,1]", "adafocus-v2"), "no permutation|not a permutation"),
    (variant("order=midle", "adafocus-v2"), "did you mean 'middle-first'"),
    (variant("grid=1", "adafocus-v1"), "grid=1"),
    (variant("gamma=2", "adafocus-v1"), "gamma=2"),
    (variant("skip=1", "adafocus-v1"), "skip=1: expected a valid boolean"),
    (variant("reward=nosuch", "adafocus-v1"), "unknown reward 'nosuch'"),
    (variant("samples=0", "adafocus-v1-tsm"), "samples=0"),
    (variant("action_std=0", "adafocus-v1-tsm"), "action_std=0"),
    (variant("smallest_box=0", "uni-adafocus"), "smallest_box=0"),
    (variant("smallest_box=999", "uni-adafocus"), "smallest_box must be between"),
    (variant("draws=0", "uni-adafocus"), "draws=0"),
    (variant("frames=1000", "uni-adafocus"), "cannot be taken out of"),
    (variant("glance=restiny", "uni-adafocus-x3d"), "did you mean 'restiny3d'"),
    # --set
    (f"{RUN} --set frames", "KEY=VALUE"),
    (f"{RUN} --set =1", "KEY=VALUE"),
    (f"{RUN} --set .frames=1", "lacks a name beside a dot"),
    (f"{RUN} --set frames.=1", "lacks a name beside a dot"),
    (f"{RUN} --set stage..lr=1", "lacks a name beside a dot"),
    (f"{RUN} --set frame=1", "did you mean 'frames'"),
    (f"{RUN} --set tsm.frames=1", "unknown method in --set 'tsm'"),
    (f"{RUN} --set frames=x", "tsn: frames='x': expected a valid integer"),
    (f"{RUN} --set num_classes=1", "the data set fixes"),
    (f"{RUN} --set protocol.=1", "lacks a name beside a dot"),
    (f"{RUN} --set protocol.selektion=last", "did you mean 'selection'"),
    (f"{RUN} --set protocol.threads=0", "protocol.threads=0: expected greater than or equal to 1"),
    (f"{RUN} --set protocol.train_split=foo", "unknown protocol.train_split 'foo'"),
    (f"{RUN} --set protocol.test_split=foo", "unknown protocol.test_split 'foo'"),
    (f"{RUN} --set protocol.calib_split=foo", "unknown protocol.calib_split 'foo'"),
    (f"{RUN} --set protocol.eval_batch=0", "protocol.eval_batch=0"),
    (f"{RUN} --set protocol.limit=-1", "protocol.limit=-1"),
    (f"{RUN} --set protocol.test_seed=x", "protocol.test_seed='x'"),
    (f"{RUN} --set protocol.budgets=nan", "protocol.budgets"),
    (f"{RUN} --set protocol.budgets=[0.5,1e999]", "finite number"),
    (f"{RUN} --set protocol.budgets=2", "less than or equal to 1"),
    (f"{RUN} --set protocol.budgets=[0.3,0.301,0.5]", "0.30 twice"),
    (f"{RUN} --set protocol.budget_unit=seconds", "unknown protocol.budget_unit 'seconds'"),
    (f"{RUN} --set protocol.budget_unit=ms --set protocol.budget_batch=0", "protocol.budget_batch"),
    (f"{RUN} --set protocol.budget_batch=16", "goes with protocol.budget_unit=ms"),
    (f"{RUN} --set protocol.epoch_scale=0", "protocol.epoch_scale=0"),
    (f"{RUN} --set protocol.dtype=int8", "unknown protocol.dtype 'int8'"),
    (f"{RUN} --set protocol.views=two", "unknown protocol.views 'two'"),
    (f"{RUN} --set stage.lr=-1", "stage.lr=-1: expected greater than 0"),
    (f"{RUN} --set stage.lr=1e999", "finite number"),
    (f"{RUN} --set stage.warmup=2", "stage.warmup=2"),
    (f"{RUN} --set stage.schedule=foo", "unknown stage.schedule 'foo'"),
    (f"{RUN} --set stage.optimizer=SDG", "did you mean 'SGD'"),
    (f"{RUN} --set stage.weight_decay=-5", "stage.weight_decay=-5"),
    (f"{RUN} --set stage.momentum=1", "stage.momentum=1"),
    (f"{RUN} --set stage.batch_size=0", "stage.batch_size=0"),
    (f"{RUN} --set stage.views_per_epoch=0", "stage.views_per_epoch=0"),
    (f"{RUN} --set stage.trained=nosuch", "stage.trained='nosuch': expected a list, as in ['nosuch']"),
    (f"""{RUN} --set "stage.trained=['nosuch']" """, "names 'nosuch', which TSN does not have"),
    (f"{RUN} --set stage.trained=[]", "trains no parameter"),
    (f"{RUN} --set stage.groups=3", "stage.groups=3: expected a list"),
    (f"{RUN} --set stage.method=tsm", "say which stage it is"),
    (f"{RUN} --set stage.nosuch.lr=1", "unknown stage 'nosuch'"),
    # options of run
    (f"{RUN} --epochs 0", "--epochs"),
    (f"{RUN} --epochs 999999999", "epochs=999999999"),
    (f"{RUN} --seeds 0", "--seeds"),
    (f"{RUN} --seeds 99999999", "--seeds"),
    (f"{RUN} --jobs 0", "--jobs"),
    (f"{RUN} --jobs x", "--jobs"),
    (f"{RUN} --timeout 0", "--timeout"),
    (f"{RUN} --timeout nan", "--timeout"),
    (f"{RUN} --timeout inf", "--timeout inf: expected a finite number"),
    (f"{RUN} --limit 0", "--limit"),
    (f"{RUN} --allow-missing -1", "--allow-missing"),
    (f"{RUN} --batches x", "comma-separated numbers"),
    (f"{RUN} --batches 0", "at least 1"),
    (f"{RUN} --device cuda:9", "cpu, cuda or auto"),
    (f"{RUN} --device ''", "cpu, cuda or auto"),
    (f"{RUN} --size huge", "unknown size 'huge'"),
    (f"{RUN} --size paper", "ImageNet weights"),
    (f"{RUN} --weights-dir {{tmp}}/nosuch", "there is no such folder"),
    (f"{RUN} --work-dir {{file}}", "is no folder"),
    (f"{RUN} --work-dir {{file}}/below", "is no folder"),
    (f"{RUN} --data-root {{file}}", "is no folder"),
    # other commands
    ("list nosuch", "unknown list 'nosuch'"),
    ("list metods", "did you mean 'methods'"),
    ("nosuch", "No such command"),
    ("gflops", "--paper"),
    ("gflops tsn --paper", "--paper"),
    ("gflops --paper --set frames=1", "--set goes with a method"),
    ("gflops nosuch", "unknown method 'nosuch'"),
    ("gflops tsn --size huge", "unknown size 'huge'"),
    ("gflops tsn --resolution 0", "--resolution"),
    ("gflops tsn --resolution 99999999", "--resolution"),
    ("gflops tsn --classes 0", "--classes"),
    ("gflops tsn --size tiny --set protocol.threads=2", "--set takes SETTING=VALUE"),
    ("gflops tsn --size tiny --set nosuch=2", "unknown setting of tsn 'nosuch'"),
    ("gflops tsn --size tiny --set frames=0", "tsn: frames=0"),
    ("profile nosuch", "unknown method 'nosuch'"),
    ("profile tsn --batch -1", "--batch"),
    ("profile tsn --batch 99999999", "--batch"),
    ("profile tsn --size x", "unknown size 'x'"),
    ("profile tsn --device xpu", "cpu, cuda or auto"),
    ("profile tsn --out {file}", "is no folder"),
    ("latency nosuch", "unknown method 'nosuch'"),
    ("latency tsn --batch ''", "--batch"),
    ("latency tsn --batch 0", "--batch"),
    ("latency tsn --dtype int8", "unknown dtype 'int8'"),
    ("latency tsn --mode x", "unknown mode 'x'"),
    ("latency tsn --mode ''", "--mode takes"),
    ("latency tsn --memory-format x", "unknown memory format 'x'"),
    ("latency tsn --threads 0", "--threads"),
    ("latency tsn --min-seconds -1", "--min-seconds"),
    ("latency tsn --min-seconds inf", "finite number"),
    ("latency tsn --work-dir {file}", "is no folder"),
    ("convert {foreign} --out {file}", "is no folder"),
    ("convert {foreign} --out {tmp}/x --method nosuch", "unknown method 'nosuch'"),
    ("convert {foreign} --out {tmp}/x --method tsn", "no official checkpoints"),
    ("convert {foreign} --out {tmp}/x --set stage.lr=1", "--set takes SETTING=VALUE"),
    ("parity {tmp}/nosuch", "is no folder"),
    ("parity {file}", "is no folder"),
    ("gate --against HEAD --methods ''", "names no method"),
    ("gate --against HEAD --methods nosuch", "unknown method 'nosuch'"),
    ("gate --json", "--json goes with --against"),
    ("eval --checkpoint {file} --dataset glyphs --limit 0", "--limit"),
    ("eval --checkpoint {file} --dataset glyphs --dump {tmp}", "is a folder; name a file in it"),
    ("eval --checkpoint {file} --dataset glyphs --dump {file}/x.npz", "is no folder"),
    ("predict {file} --checkpoint {file} --top 0", "--top"),
    ("predict {file} --checkpoint {file} --out {file}", "is no folder"),
    ("predict {file} --checkpoint {file} --set protocol.threads=2", "--set takes SETTING=VALUE"),
    ("report {tmp} --out {file}", "is no folder"),
    ("compare", "compare takes --methods A,B"),
    ("compare {tmp}", "compare takes --methods A,B"),
    ("compare --methods tsn", "two or more different methods"),
    ("compare --methods tsn,tsm --at nosuch", "unknown cost 'nosuch'"),
    ("data render nosuch", "nosuch"),
    ("data render glyphs --size huge", "unknown size 'huge'"),
    ("data render glyphs --processes 0", "--processes"),
    ("data render glyphs --data-root {file}", "is no folder"),
]
"""Words of a command and what its message says; exit code 2."""

FAILS: list[tuple[str, str]] = [
    ("run --methods tsn --datasets csv:{tmp}/nosuch.csv --dry-run", "nosuch.csv"),
    ("""run --methods tsn --datasets '"csv:{tmp}/a,b.csv"' --dry-run""", "a,b.csv"),
    ("latency tsn --work-dir {tmp}/w", "bench.py run"),
    ("convert {tmp}/nosuch.pth --out {tmp}/x", "nosuch.pth does not exist"),
    ("convert {tmp} --out {tmp}/x", "is a folder; name the checkpoint file"),
    ("convert {file} --out {tmp}/x", "cannot be read as a file of tensors and numbers: it is damaged"),
    ("convert {empty} --out {tmp}/x", "is empty"),
    ("convert {truncated} --out {tmp}/x", "cannot be read as a file of tensors and numbers: it is damaged"),
    ("convert {safetensors} --out {tmp}/x", "cannot be read as a file of tensors and numbers: it is damaged"),
    ("convert {objects} --out {tmp}/x", "holds Python objects (pathlib"),
    ("convert {foreign} --out {tmp}/x", "is no official checkpoint of"),
    ("eval --checkpoint {tmp}/nosuch --dataset glyphs", "is not an artifact of this project"),
    ("eval --checkpoint {file} --dataset glyphs", "bench.py convert"),
    ("predict {file} --checkpoint {file}", "is not an artifact of this project"),
    ("report {tmp}/nosuch", "bench.py run"),
]
"""As WRONG, for what is missing or damaged: exit code 1."""


@dataclass
class Ended:
    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`bench.py WORDS` in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["bench.py", *words])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        told = capsys.readouterr()
        return Ended(ended.value.code, told.out, told.err)  # type: ignore[arg-type]

    return called


@pytest.fixture(scope="session")
def places(clips_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of every damaged kind, by the name that cases call them."""
    tmp = tmp_path_factory.mktemp("bad")
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(100)}, whole)
    torch.save({"a": tmp}, tmp / "objects.pth")
    files = {
        "file": b"just text",
        "empty": b"",
        "foreign": whole.getvalue(),
        "truncated": whole.getvalue()[:-200],
        "safetensors": save({"a": torch.zeros(100)})[:60],
    }
    for name, content in files.items():
        (tmp / name).write_bytes(content)
    named = {name: str(tmp / name) for name in files}
    return {**named, "objects": str(tmp / "objects.pth"), "tmp": str(tmp), "csv": str(clips_csv)}


@pytest.mark.parametrize(
    ("line", "told", "code"), [(*case, 2) for case in WRONG] + [(*case, 1) for case in FAILS], ids=lambda v: str(v)[:80]
)
def test_bad_input_is_told(line: str, told: str, code: int, call: Call, places: dict[str, str]) -> None:
    ended = call(*(word.format(**places) for word in shlex.split(line)))
    assert ended.code == code, ended
    assert any(text in ended.err for text in told.split("|")), ended.err
    assert "Traceback" not in ended.err + ended.out and "internal error" not in ended.err
    assert len(ended.err.strip().splitlines()) <= 5
    assert not Path("results").exists(), "something was started"


def test_the_device_is_looked_for_before_anything_starts(call: Call, places: dict[str, str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ended = call(*RUN.format(**places).split(), "--device", "cuda")
    assert ended.code == 2 and "torch sees no GPU here" in ended.err


def test_a_right_plan_passes(call: Call, places: dict[str, str]) -> None:
    """The cases above fail for what is wrong in them, not because every plan does."""
    ended = call(*RUN.format(**places).split(), "--set", "frames=4.0", "--set", "stage.trained=['fc']")
    assert ended.code == 0 and "to do" in ended.out, ended


def test_a_list_with_a_comma_in_its_path(call: Call, places: dict[str, str], tmp_path: Path) -> None:
    folder = Path(places["csv"]).parent
    (tmp_path / "a,b").symlink_to(folder)
    words = ["run", "--methods", "tsn", "--datasets", f'"csv:{tmp_path}/a,b/labels.csv"', "--dry-run"]
    ended = call(*words)
    assert ended.code == 0 and "tsn on a,b" in ended.out, ended


def test_damaged_pairs_fail_one_by_one(call: Call, tmp_path: Path) -> None:
    texts = {
        "broken": "{",
        "list": "[]",
        "lonely": "{}",
        "zip": "{}",
        "object": "{}",
        "foreign": '{"method": 3, "tensors": 5}',
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "latin.json").write_bytes(b"\xff{}")
    for name in ("broken", "list", "latin", "only"):
        np.savez(tmp_path / f"{name}.npz", a=np.zeros(3))
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    np.savez(tmp_path / "object.npz", a=np.array([None, {}], dtype=object))
    (tmp_path / "zip.npz").write_bytes(b"PK no zip")
    ended = call("parity", str(tmp_path), "--json")
    assert ended.code == 1 and not ended.err
    found = {row["name"]: row for row in json.loads(ended.out)}
    assert {name for name, row in found.items() if row["status"] == "fail"} >= {*texts, "latin", "only"} - {"foreign"}
    told = {"broken": "no JSON", "list": "holds a list", "lonely": "lonely.npz", "zip": "damaged", "latin": "UTF-8"}
    told |= {"object": "plain arrays", "only": "only.json"}
    assert all(text in found[name]["detail"] for name, text in told.items()), found


def test_debug_shows_the_traceback_wherever_it_stands(call: Call) -> None:
    for words in (["--debug", "list", "nosuch"], ["list", "--debug", "nosuch"], ["list", "nosuch", "--debug"]):
        ended = call(*words)
        assert ended.code == 2 and "Traceback" in ended.err and "error: unknown list" in ended.err


def test_what_nobody_foresaw_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended_by(error: BaseException) -> Ended:
        def raising(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(harness.commands.listing, "show", raising)
        return call("list")

    ended = ended_by(ZeroDivisionError("division by zero"))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == (
        "error: internal error: ZeroDivisionError: division by zero; run again with --debug and report it\n"
    )
    ended = ended_by(PermissionError(13, "Permission denied", "/x/y"))
    assert (ended.code, ended.err) == (1, "error: /x/y: Permission denied\n")
    ended = ended_by(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"))
    assert ended.code == 1 and "UTF-8" in ended.err and ended.err.count("\n") == 1
    ended = ended_by(MemoryError())
    assert ended.code == 1 and "out of memory" in ended.err
    ended = ended_by(KeyboardInterrupt())
    assert (ended.code, ended.err) == (130, "")


def test_a_reader_that_leaves_early_ends_it_quietly() -> None:
    words = f"{shlex.quote(sys.executable)} bench.py list | head -1"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "methods:\n" and done.stderr == ""


def test_terminals_that_lack_characters_and_names_that_are_no_utf8(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(harness.commands.listing, "show", lambda *_, **__: print("−1.5 × 2 …", os.fsdecode(b"\xff")))
    assert call("list").code == 0
    streams["stdout"].flush()
    assert streams["stdout"].buffer.getvalue() == b"-1.5 x 2 ... \\udcff\n"  # type: ignore[attr-defined]
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stderr", strict)
    assert call("report", os.fsdecode(bytes(tmp_path / "x") + b"\xff")).code == 1
    strict.flush()
    assert b"x\\udcff" in strict.buffer.getvalue()  # type: ignore[attr-defined]
