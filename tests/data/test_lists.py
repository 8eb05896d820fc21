"""Split lists: the published formats line by line, the real files where they lie beside the project, CSVs."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.data.cards import dataset_card
from harness.data.lists import fold_values, inside, parse_line, read_classes, read_csv, read_list
from harness.errors import DataError, UsageError
from tests.data.media import shared


@pytest.mark.parametrize(
    ("line", "multi", "parsed"),
    [
        ("v_abc,120,7", True, ("v_abc", 120, (7,))),
        ("v_abc,120,9,7,3", True, ("v_abc", 120, (3, 7, 9))),
        ("v_abc,120,7,-1,-1", True, ("v_abc", 120, (7,))),
        ("v_abc 120 9 7", True, ("v_abc", 120, (7, 9))),
        ("100218 42 31", False, ("100218", 42, (31,))),
        ("images/val/air drumming/7LS 60 0", False, ("images/val/air drumming/7LS", 60, (0,))),
        ("val/air drumming/7LS;60;0", False, ("val/air drumming/7LS", 60, (0,))),
        ("abseiling/a b_1.mp4 0", False, ("abseiling/a b_1.mp4", None, (0,))),
        ("x.MKV 3 5", True, ("x.MKV", None, (3, 5))),
    ],
)
def test_lines(line: str, multi: bool, parsed: tuple) -> None:
    assert parse_line(line, multi) == parsed


@pytest.mark.parametrize(
    ("line", "reason"),
    [("only-a-path", "expected"), ("a 12 x", "whole numbers"), ("a 12", "expected"), ("a,12,-1", "no label"),
     ("a,5,1,2", "2 labels")],
)
def test_bad_lines(line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_line(line, False)


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    wrong = {
        "1 5 0\n2 5 99\n": r"list.txt:2: label outside 0..26", "1 5 0\n1 6 0\n": ":2: '1' is listed",
        "\n": "lists no video", "1 5 0\n../2 5 0\n": r":2: '../2' leaves",
    }
    for text, match in wrong.items():
        path.write_text(text)
        with pytest.raises(DataError, match=match):
            read_list(path, tmp_path, dataset_card("jester"))


def test_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "a/../b.mp4", "l:1") == tmp_path / "a/../b.mp4"
    for name in ("../x", "a/../../x"):
        with pytest.raises(DataError, match="leaves the data folder"):
            inside(tmp_path, name, "l:1")
    with pytest.raises(DataError, match="--allow-absolute"):
        inside(tmp_path, "/etc/x.mp4", "l:1")
    assert inside(tmp_path, "/etc/x.mp4", "l:1", allow_absolute=True) == Path("/etc/x.mp4")


REAL = [
    ("activitynet", "activitynet/anet_train_video.txt", 10024), ("sthv1", "sthv1/train_split.txt", 86017),
    ("activitynet", "activitynet/anet_val_video_multi_label.txt", 4926), ("sthv1", "sthv1/validation_split.txt", 11522),
    ("mini-kinetics", "mini_kinetics/mini_kinetics_train.txt", 121070),
    ("mini-kinetics", "mini_kinetics/mini_kinetics_val.txt", 9864),
    ("mini-kinetics", "mini_kinetics/mini_val_videofolder.txt", 9867),
    ("sthv2", "sthv2/train_videofolder.txt", 168913), ("sthv2", "sthv2/val_videofolder.txt", 24777),
    ("jester", "jester/train_split.txt", 118562), ("jester", "jester/validation_split.txt", 14787),
]


@pytest.mark.parametrize(("name", "path", "count"), REAL, ids=[r[1] for r in REAL])
def test_real_lists(name: str, path: str, count: int) -> None:
    entries = read_list(shared("splits", *path.split("/")), Path("frames"), dataset_card(name))
    assert len(entries) == count
    assert all(e.frames and e.frames > 0 for e in entries)
    doubly = sum(len(e.labels) == 2 for e in entries)
    assert doubly == (7 if "multi_label" in path else 0)


@pytest.mark.parametrize(
    ("name", "path", "first"),
    [("sthv1", "sthv1/classInd.txt", "Holding something"), ("jester", "jester/classInd.txt", "Swiping Left"),
     ("mini-kinetics", "mini_kinetics/minik_classInd.txt", "air drumming"),
     ("sthv2", "sthv2/classInd.txt", "Approaching something with your camera"),
     ("activitynet", "label_maps/activitynet.txt", "Applying sunscreen"),
     ("kinetics400", "label_maps/kinetics400.txt", "abseiling"),
     ("diving48", "label_maps/diving48.txt", "Back+15som+05Twis+FREE")],
)
def test_real_class_files(name: str, path: str, first: str) -> None:
    classes = read_classes(shared("splits", *path.split("/")))
    assert len(classes) == dataset_card(name).num_classes and classes[0] == first


def csv(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(text)
    return path


def test_csv_with_numbers_and_class_names(tmp_path: Path) -> None:
    table = read_csv(csv(tmp_path, "path,label,class,frames,fold\na.mp4,1,kick,30,10\nb.mp4,0,hug,,9\n"))
    assert table.classes == ("hug", "kick")
    assert [(e.id, e.path, e.labels, e.frames) for e in table.entries] == [
        ("a.mp4", tmp_path / "a.mp4", (1,), 30), ("b.mp4", tmp_path / "b.mp4", (0,), None)]
    assert table.where("fold=9") == [1]
    assert fold_values(table.path, "fold") == ["9", "10"]
    with pytest.raises(UsageError, match="values of fold: 10, 9"):
        table.where("fold=3")
    with pytest.raises(UsageError, match="did you mean 'fold'"):
        table.where("fould=3")
    with pytest.raises(UsageError, match="COLUMN=VALUE"):
        table.where("fold")


def test_csv_with_names(tmp_path: Path) -> None:
    for header in ("path,label", "path,class"):
        table = read_csv(csv(tmp_path, f"\ufeff{header}\na.mp4,zumba\nb.mp4,aikido\n"))
        assert table.classes == ("aikido", "zumba") and [e.labels for e in table.entries] == [(1,), (0,)]


@pytest.mark.parametrize(
    ("text", "match"),
    [("path,x\na,1\n", "needs the columns path and label"), ("path,label\n", "lists no video"),
     ("path,label\na,1\na,0\n", ":3: 'a' is listed twice"), ("path,label\na,\n", ":2: no label"),
     ("path,label\na\n", ":2: "), ("path,label\na,1,5\n", ":2: the line"),
     ("path,label,class\na,0,hug\nb,0,kick\n", ":3: label 0 is called 'kick'"),
     ("path,label\n../a,0\n", ":2: '../a' leaves"), ("path,label\n/a,0\n", "--allow-absolute")],
)
def test_bad_csv(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_csv(csv(tmp_path, text))


def test_csv_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_csv(tmp_path / "no.csv")
