"""Data that are not as they should be, through the command line: named with a remedy, exit code 1 or 2, no traceback.

Every case runs in this process; an exception that `bench.py` does not turn into a message fails the test.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import bench
from harness.data.encode import write_mp4
from tests.commands.test_predict import made

Case = Callable[[Path], list[str]]
CLASSES = ("blue", "red")
SPLIT = ("train",) * 8 + ("calib",) * 2 + ("test",) * 2


class Called:
    """`bench.py` with arguments: exit code and what it printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self.monkeypatch.setattr(sys, "argv", ["bench.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    return Called(monkeypatch, capsys)


@pytest.fixture
def folder(clips_csv: Path, tmp_path: Path) -> Path:
    """Twelve good clips of two classes, `g/00.mp4` ..., and what `stats` takes: eight train, two calib, two test."""
    (tmp_path / "videos" / "g").mkdir(parents=True)
    for number in range(12):
        shutil.copy(clips_csv.parent / f"{number:02}.mp4", tmp_path / "videos" / "g")
    (tmp_path / "videos" / "labels.csv").write_text(listed())
    return tmp_path / "videos"


def listed(*more: str, header: str = "path,label,split", changes: dict[int, str] | None = None) -> str:
    """The good list; `changes` replace rows by number (empty: remove), `more` are added."""
    rows = {n: f"g/{n:02}.mp4,{CLASSES[n % 2]},{SPLIT[n]}" for n in range(12)} | (changes or {})
    return "\n".join([header, *filter(None, rows.values()), *more]) + "\n"


def stats(folder: Path, *options: str) -> list[str]:
    return ["data", "stats", f"csv:{folder / 'labels.csv'}", "--data-root", str(folder.parent / "data"), *options]


def text(content: str | bytes) -> Case:
    """The list holds `content`."""

    def case(folder: Path) -> list[str]:
        path = folder / "labels.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return stats(folder)

    return case


def rows(*more: str, **options: dict[int, str]) -> Case:
    return text(listed(*more, **options))


def numbered(*labels: object) -> Case:
    """The twelve videos with these labels in turn."""
    return rows(changes={n: f"g/{n:02}.mp4,{labels[n % len(labels)]},{SPLIT[n]}" for n in range(12)})


def files(change: Callable[[Path], object], *more: str) -> Case:
    """Files are changed, and rows added."""

    def case(folder: Path) -> list[str]:
        change(folder)
        (folder / "labels.csv").write_text(listed(*more))
        return stats(folder)

    return case


def frames(template: str, numbers: range | list[int], sizes: tuple[int, ...] = (48,)) -> Case:
    """A folder of frames in the training list."""

    def write(folder: Path) -> None:
        (folder / "f").mkdir()
        for place, number in enumerate(numbers):
            image = np.full((48, sizes[place % len(sizes)], 3), 20 * place, dtype=np.uint8)
            cv2.imwrite(str(folder / "f" / template.format(number)), image)

    return files(write, "f,red,train")


def film(path: Path, width: int, height: int, count: int = 4) -> None:
    rng = np.random.default_rng(0)
    write_mp4(path, (rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)), 8)


def odd_folder(folder: Path) -> list[str]:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(odd)
    return stats(odd)


def jester(train: str | bytes, classes: bytes | None = None) -> Case:
    """The published set with these lists; its videos are the clips."""

    def case(folder: Path) -> list[str]:
        root = folder.parent / "jester"
        (root / "videos").mkdir(parents=True)
        for file in (folder / "g").iterdir():
            shutil.copy(file, root / "videos")
        (root / "train_split.txt").write_bytes(train if isinstance(train, bytes) else train.encode())
        (root / "validation_split.txt").write_text("10.mp4 0\n11.mp4 1\n")
        if classes is not None:
            (root / "classInd.txt").write_bytes(classes)
        return ["data", "stats", "jester", "--data-root", str(folder.parent)]

    return case


JESTER = "".join(f"{n:02}.mp4 {n % 2}\n" for n in range(8))


def planned(*sets: str) -> Case:
    """A run of these protocol settings, as far as it is planned."""

    def case(folder: Path) -> list[str]:
        options = [word for s in sets for word in ("--set", f"protocol.{s}")]
        place = ["--work-dir", str(folder.parent / "w"), "--data-root", str(folder.parent / "data"), "--device", "cpu"]
        return ["run", "--methods", "tsn", "--datasets", f"csv:{folder / 'labels.csv'}", "--dry-run", *place, *options]

    return case


def checkpoint(folder: Path, *classes: str) -> Path:
    """An artifact that knows these classes."""
    target = made(folder.parent / "artifact", "tsn", classes=2, resolution=112, dataset="csv:labels.csv")
    described = json.loads((target / "artifact.json").read_text())
    (target / "artifact.json").write_text(json.dumps({**described, "classes": classes}))
    return target


def evaluated(*classes: str) -> Case:
    """The evaluation of a checkpoint that knows these classes."""

    def case(folder: Path) -> list[str]:
        place = ["--work-dir", str(folder.parent / "w"), "--data-root", str(folder.parent / "data"), "--device", "cpu"]
        file = checkpoint(folder, *classes)
        return ["eval", "--checkpoint", str(file), "--dataset", f"csv:{folder / 'labels.csv'}", *place]

    return case


def evaluated_otherwise(*options: str, resolution: int = 112) -> Case:
    """The evaluation of a fitting checkpoint that takes frames of this side, with these options."""

    def case(folder: Path) -> list[str]:
        made(folder.parent / "other", "tsn", classes=2, resolution=resolution, size="tiny")
        place = ["--work-dir", str(folder.parent / "w"), "--data-root", str(folder.parent / "data"), "--device", "cpu"]
        line = ["eval", "--checkpoint", str(folder.parent / "other"), "--dataset", f"csv:{folder / 'labels.csv'}"]
        return [*line, *place, *options]

    return case


def predicted(make: Callable[[Path], Path], *options: str) -> Case:
    """One video through a checkpoint."""

    def case(folder: Path) -> list[str]:
        line = ["predict", str(make(folder)), "--checkpoint", str(checkpoint(folder, "cat", "dog"))]
        out = ["--out", str(folder.parent / "out"), "--device", "cpu"]
        return [*line, *out, *(o.format(folder=folder) for o in options)]

    return case


def narrow(folder: Path) -> Path:
    film(folder / "g" / "narrow.mp4", 2, 1024)
    return folder / "g" / "narrow.mp4"


def odd_video(folder: Path) -> Path:
    target = Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.mp4"))
    shutil.copy(folder / "g" / "00.mp4", target)
    return target


def nothing(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def diverged(folder: Path) -> list[str]:
    from harness.store import artifacts

    file = checkpoint(folder, *CLASSES)
    drawn = artifacts.read_weights(file / "model.safetensors")
    state = {k: torch.full_like(v, torch.nan) if v.is_floating_point() else v for k, v in drawn.items()}
    described = json.loads((file / "artifact.json").read_text())
    artifacts.write(file, state, {k: v for k, v in described.items() if k not in ("schema", "weights")})
    return ["predict", str(folder / "g" / "00.mp4"), "--checkpoint", str(file), "--out", str(folder.parent / "out")]


def same(link: Callable[[Path, Path], object]) -> Case:
    """A training video stands in the test split under another name."""
    return files(lambda f: link(f / "g" / "00.mp4", f / "g" / "again.mp4"), "g/again.mp4,blue,test")


CASES: dict[str, tuple[Case, str]] = {
    "UTF-16": (text(listed().encode("utf-16")), r"labels\.csv: is not text in UTF-8"),
    "Latin-1": (text(listed("g/é.mp4,red,train").encode("latin-1")), r"labels\.csv: is not text in UTF-8.*save it as"),
    "NUL bytes": (rows("g/\0.mp4,red,train"), r"labels\.csv: holds NUL bytes"),
    "a field beyond the limit": (rows(f"{'g' * 200_000},red,train"), r"labels\.csv:14: field larger than field limit"),
    "an open quotation mark": (rows('"g/12.mp4,red,train'), r"labels\.csv:14: .*quotation mark not closed"),
    "an empty list": (text(""), r"needs the columns path and label, has none"),
    "a list of a header": (text("path,label\n"), r"labels\.csv lists no video"),
    "a column twice": (rows(header="path,label,label"), r"labels\.csv:1: the header names 'label' twice"),
    "a folder as list": (lambda f: stats(f / "g") if (f / "g" / "labels.csv").mkdir() is None else [], "is a folder"),
    "no list": (lambda f: stats(f / "nowhere"), r"labels\.csv does not exist"),
    "a folder that is not UTF-8": (odd_folder, r"udcff.*not text in UTF-8; rename"),
    "a data root that is not UTF-8": (lambda f: stats(f, "--data-root", "d\udcff"), r"udcff.*not text in UTF-8"),
    "an unknown split": (rows(changes={3: "g/03.mp4,red,trian"}), r"split holds 'trian' \(1 rows\), it takes train,"),
    "no split": (rows(changes={3: "g/03.mp4,red,"}), r"split holds '' \(1 rows\)"),
    "a single class": (numbered("red"), "all videos are of one class, 'red'"),
    "a class only in test": (rows(changes={11: "g/11.mp4,green,test"}), "1 of 3 classes have no video.*'green'"),
    "a label of three millions": (numbered(0, 1, 3_000_000), r":4: label 3000000 among 3 different.*column label"),
    "a gap in the labels": (numbered(0, 2), r"label 2 among 2 different labels: .*without gaps"),
    "a label of 5000 digits": (numbered(0, "1" * 5000), r"label 1{17}\.\.\. among 2"),
    "two labels of one name": (
        text("path,label,class\ng/00.mp4,0,cat\ng/01.mp4,1,cat\n"), "labels 0, 1 are all called 'cat'"),
    "one video of each class": (
        text("path,label,split\ng/00.mp4,0,train\ng/01.mp4,1,train\ng/02.mp4,0,test\n"), "none can be held out"),
    "a number of frames that is none": (
        text("path,label,frames\ng/00.mp4,0,many\n"), r"labels\.csv:2: frames takes a number, not 'many'"),
    "a video twice": (rows("g/00.mp4,blue,test"), r":14: 'g/00\.mp4' is listed twice \(line 2\)"),
    "a path with two slashes": (rows("g//01.mp4,red,test"), r"'g//01\.mp4' is listed twice \(line 3 as 'g/01\.mp4'\)"),
    "a path from here": (rows("./g/00.mp4,blue,test"), r"'\./g/00\.mp4' is listed twice"),
    "a way around": (rows("g/../g/00.mp4,blue,test"), r"'g/\.\./g/00\.mp4' is listed twice"),
    "a path that leaves": (rows("../00.mp4,blue,test"), r":14: '\.\./00\.mp4' leaves"),
    "an absolute path": (rows("/tmp/00.mp4,blue,test"), r":14: absolute path.*--allow-absolute"),
    "a symbolic link": (same(lambda a, b: b.symlink_to(a)), r"1 video \(g/00\.mp4 \(as g/again\.mp4\)\) in the train"),
    "a hard link": (same(os.link), r"g/00\.mp4 \(as g/again\.mp4\).*remove it"),
    "a copy": (same(shutil.copy), r"g/00\.mp4 \(as g/again\.mp4\).*data check"),
    "a copy that is calibrated on": (
        files(lambda f: shutil.copy(f / "g" / "00.mp4", f / "g" / "x.mp4"), "g/x.mp4,blue,calib"),
        r"in the train and in the calib split"),
    "a copy that is selected on": (
        files(lambda f: shutil.copy(f / "g" / "10.mp4", f / "g" / "x.mp4"), "g/x.mp4,blue,val"),
        r"in the val and in the test split"),
    "a missing video": (rows("g/12.mp4,red,train"), r"g/12\.mp4: missing"),
    "an empty video": (files(lambda f: (f / "g" / "00.mp4").write_bytes(b"")), r"g/00\.mp4: empty file"),
    "a text as video": (files(lambda f: (f / "g" / "00.mp4").write_text("no")), r"g/00\.mp4: cannot be decoded"),
    "a folder as video": (
        files(lambda f: (f / "g" / "x.mp4").mkdir(), "g/x.mp4,red,train"), r"g/x\.mp4: no frame named 00001\.jpg"),
    "a link to itself": (
        files(lambda f: (f / "g" / "x.mp4").symlink_to("x.mp4"), "g/x.mp4,red,train"), r"g/x\.mp4: missing"),
    "a name that is too long": (rows(f"g/{'x' * 300}.mp4,red,train"), r"xxx\.mp4: File name too long"),
    "a narrow video": (
        files(lambda f: film(f / "g" / "x.mp4", 2, 1024), "g/x.mp4,red,train"), r"x\.mp4: 2 x 1024 pixels: .*16 times"),
    "frames with a gap": (frames("{:05d}.jpg", [1, 2, 4, 5]), r"f: 1 of its frames missing, the first is 00003\.jpg"),
    "frames from 0": (frames("{:05d}.jpg", range(6)), r"f: frames are numbered from 0 \(00000\.jpg\); number them"),
    "frames of mixed sizes": (frames("{:05d}.jpg", range(1, 4), (48, 64)), r"00002\.jpg: 64 x 48 pixels, other.*48"),
    "frames of another name": (frames("img_{:05d}.jpg", range(1, 4)), r"no frame named 00001\.jpg; it holds img_00001"),
    "no frames": (frames("{:05d}.jpg", []), r"f: no frame named 00001\.jpg"),
    "a published list in Latin-1": (jester("é.mp4 0\n".encode("latin-1")), r"train_split\.txt: is not text in UTF-8"),
    "a published label outside": (jester(JESTER + "08.mp4 99\n"), r"train_split\.txt:9: label outside 0\.\.26"),
    "a published video twice": (jester(JESTER + "./00.mp4 0\n"), r"train_split\.txt:9: '\./00\.mp4' is listed twice"),
    "published splits that overlap": (jester(JESTER + ".//10.mp4 0\n"), r"Jester: 1 video .* and in the test split"),
    "class names in Latin-1": (jester(JESTER, "é\n".encode("latin-1")), r"classInd\.txt: is not text in UTF-8"),
    "class names that are missing": (jester(JESTER, b"a\nb\n"), r"classInd\.txt: 2 classes, Jester has 27"),
    "calibration on test": (planned("calib_split=test"), r"for calib \(the split test\) and for test"),
    "test on calibration": (planned("test_split=calib"), r"used for calib .*and for test"),
    "calibration on train": (planned("calib_split=train"), r"8 videos .* for train .*and for calib"),
    "training on test": (planned("train_split=test", "test_split=train", "calib_split=test"), "for train .*for calib"),
    "selection on test": (planned("selection=best-val", "test_split=val"), "val"),
    "test on what is calibrated on": (planned("test_split=val"), r"for calib .* and for test .*split val"),
    "an unknown split of a protocol": (planned("calib_split=tset"), "tset"),
    "classes in another order": (evaluated("red", "blue"), r"the same names in another order: class 0 is 'red' to the"),
    "other classes": (evaluated("cat", "dog"), r"other names: class 0 is 'cat' to the checkpoint, 'blue' in the data"),
    "frames of another resolution": (evaluated_otherwise(resolution=64), r"takes frames of 64 px, .* gives 112 px"),
    "a resolution of an evaluation": (
        evaluated_otherwise("--set", "resolution=64"), r"--set resolution: the data set fixes"),
    "a mean of an evaluation": (evaluated_otherwise("--set", "mean=[0,0,0]"), r"--set mean: the data set fixes"),
    "class names of another set": (
        predicted(lambda f: f / "g" / "00.mp4", "--dataset", "csv:{folder}/labels.csv"), r"class 0 is 'cat' to the"),
    "prediction of a narrow video": (predicted(narrow), r"narrow\.mp4: 2 x 1024 pixels"),
    "prediction of a name that is not UTF-8": (predicted(odd_video), r"udcfe.*not text in UTF-8"),
    "prediction of nothing": (predicted(nothing), r"empty: no frame named"),
    "weights that diverged": (diverged, r"the scores of .*00\.mp4 are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_data_are_named(name: str, folder: Path, called: Called) -> None:
    case, told = CASES[name]
    code, out, err = called(*case(folder))
    assert code in (1, 2), out + err
    assert re.search(told, err, re.DOTALL), err
    assert "Traceback" not in out + err
    assert not (folder.parent / "w" / "records").exists()


def test_the_good_list_is_accepted(folder: Path, called: Called) -> None:
    """What the cases change is good by itself, with a byte order mark too."""
    for content in (listed(), "\ufeff" + listed()):
        (folder / "labels.csv").write_text(content)
        assert called(*stats(folder))[0] == 0
    for case in (jester(JESTER), jester("\ufeff" + JESTER)):
        assert called(*case(folder))[0] == 0
        shutil.rmtree(folder.parent / "jester")
    code, out, err = called(*planned()(folder))
    assert code == 0, out + err
    assert "to do" in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_named(folder: Path, called: Called) -> None:
    (folder / "g" / "00.mp4").chmod(0)
    assert "g/00.mp4" in called(*stats(folder))[2]
    (folder / "labels.csv").chmod(0)
    assert "labels.csv: Permission denied" in called(*stats(folder))[2]


def test_check_tells_what_a_run_would_refuse_or_leave_out(folder: Path, called: Called) -> None:
    shutil.copy(folder / "g" / "10.mp4", folder / "g" / "x.mp4")
    shutil.copy(folder / "g" / "01.mp4", folder / "g" / "y.mp4")
    (folder / "g" / "05.mp4").write_bytes(b"")
    (folder / "labels.csv").write_text(listed("g/x.mp4,blue,train", "g/y.mp4,red,train"))
    line = ["data", "check", *stats(folder)[2:]]
    code, out, _ = called(*line)
    assert code == 1
    assert "g/05.mp4: empty file" in out and "g/x.mp4: is in train and test (as g/10.mp4)" in out
    assert "equal content: train: g/01.mp4, train: g/y.mp4" in out
    found = json.loads(called(*line, "--json")[1])
    assert {key: len(values) for key, values in found.items()} == {
        "broken": 1, "overlapping": 1, "duplicates": 2, "dropped": 0, "untrained": 0}  # fmt: skip


def test_copies_in_a_published_set_are_disclosed(folder: Path, called: Called) -> None:
    """Its lists are not ours to change: the same path in two splits is refused, a copy under another name is told."""
    shutil.copy(folder / "g" / "10.mp4", folder / "g" / "x.mp4")
    line = jester(JESTER + "x.mp4 0\n")(folder)
    code, out, _ = called(*line)
    assert code == 0 and "duplicates: 1" in out
    code, out, _ = called("data", "check", *line[2:])
    assert code == 0 and "equal content: train: x.mp4, test: 10.mp4" in out
    assert "25 untrained" in out


def test_short_videos_are_told(folder: Path, called: Called) -> None:
    film(folder / "g" / "short.mp4", 64, 48, count=2)
    line = jester(JESTER + "short.mp4 1\n")(folder)
    assert "short.mp4: has fewer than 3 frames, left out" in called("data", "check", *line[2:])[1]
    assert json.loads(called(*line, "--json")[1])["dropped"] == ["short.mp4"]
