"""Opening datasets: splits, held-out videos, fingerprints, and every broken video named beforehand."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from harness.data.check import check, describe, inspect
from harness.data.lists import read_csv
from harness.data.videos import VideoSet, hold_out, listed, open_dataset
from harness.errors import DataError, UsageError
from tests.data.media import picture, shared, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of two classes with a CSV."""
    folder = tmp_path_factory.mktemp("videos")
    lines = ["path,label,class,set,frames,split"]
    for i in range(12):
        write(folder / f"v{i:02d}.mp4", picture(frames=4, number=i))
        lines.append(f"v{i:02d}.mp4,{i % 2},{('hug', 'kick')[i % 2]},{1 + i // 8},4,{('train', 'test')[i // 8]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def opened(folder: Path, root: Path, **options: object) -> VideoSet:
    settings = {"train": "set=1", "test": "set=2", "size": "tiny"} | options
    return open_dataset(f"csv:{folder / 'labels.csv'}", data_root=root, **settings)  # type: ignore[arg-type]


def ids(videos: VideoSet) -> dict[str, list[str]]:
    return {split: [e.id for e in entries] for split, entries in videos.splits.items()}


def test_csv_splits(folder: Path, tmp_path: Path) -> None:
    videos = opened(folder, tmp_path)
    assert {s: len(v) for s, v in videos.splits.items()} == {"train": 7, "calib": 1, "val": 1, "test": 4}
    assert videos.card.classes == ("hug", "kick") and videos.num_classes == 2 and videos.resolution == 112
    assert videos.decoder == {"pyav+cv2": 12} and not videos.missing
    assert all(e.frames == 4 for v in videos.splits.values() for e in v)
    named = opened(folder, tmp_path, train=None, test=None)
    assert ids(named) == ids(videos) and named.fingerprint == videos.fingerprint
    fold = opened(folder, tmp_path, train=None, test=None, fold="set=2")
    assert ids(fold) == ids(videos)
    assert {s: len(v) for s, v in opened(folder, tmp_path, limit=2).splits.items()} == {
        "train": 2, "calib": 1, "val": 1, "test": 2}


@pytest.mark.parametrize(
    ("options", "match"),
    [({"test": None}, "go together"), ({"test": "set=1"}, "in train and test"), ({"fold": "set=1"}, "drop --train"),
     ({"test": "set=3"}, "values of set: 1, 2"), ({"size": "huge"}, "tiny, paper")],
)
def test_csv_selection_errors(folder: Path, tmp_path: Path, options: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        opened(folder, tmp_path, **options)


def test_a_csv_without_splits_can_be_checked_but_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", picture(frames=2))
    (tmp_path / "labels.csv").write_text("path,label\na.mp4,0\nb.mp4,1\n")
    name = f"csv:{tmp_path / 'labels.csv'}"
    _, splits = listed(name, data_root=tmp_path, size="tiny")
    assert [e.id for e in splits["all"]] == ["a.mp4", "b.mp4"]
    with pytest.raises(UsageError, match="say which rows are train"):
        open_dataset(name, data_root=tmp_path, size="tiny")


def test_selection_is_for_csv_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has its own splits"):
        open_dataset("jester", data_root=tmp_path, size="tiny", train="a=1", test="a=2")


def test_fingerprint_follows_what_is_seen(folder: Path, tmp_path: Path) -> None:
    first = opened(folder, tmp_path).fingerprint
    assert len(first) == 64 and first == opened(folder, tmp_path / "elsewhere").fingerprint
    others = {
        "size": opened(folder, tmp_path, size="paper").fingerprint,
        "limit": opened(folder, tmp_path, limit=3).fingerprint,
        "swapped": opened(folder, tmp_path, train="set=2", test="set=1").fingerprint,
    }
    assert len({first, *others.values()}) == 4


def test_decoder_path_is_in_the_fingerprint(tmp_path: Path) -> None:
    prints = []
    for pix_fmt in ("yuv420p", "yuv444p"):
        root = tmp_path / pix_fmt
        root.mkdir()
        for number, name in enumerate("abcd"):
            write(root / f"{name}.mp4", picture(frames=2, number=number), pix_fmt=pix_fmt)
        (root / "labels.csv").write_text("path,label,set\na.mp4,0,1\nb.mp4,1,1\nc.mp4,1,1\nd.mp4,1,2\n")
        prints.append(opened(root, root).fingerprint)
    assert prints[0] != prints[1]


def test_hold_out_is_fixed_and_disjoint(folder: Path) -> None:
    entries = read_csv(folder / "labels.csv").entries
    kept, held = hold_out(entries, 0.25)
    assert len(held) == 3 and not set(held) & set(kept) and set(held) | set(kept) == set(entries)
    assert hold_out(entries[::-1], 0.25)[1] == held[::-1]


def spoil(folder: Path, target: Path) -> Path:
    """A copy of the folder in which three videos are broken, each in its own way."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / "v01.mp4").unlink()
    (target / "v05.mp4").write_bytes(b"")
    (target / "v09.mp4").write_text("nothing to see")
    return target


def test_every_broken_video_is_named(folder: Path, tmp_path: Path) -> None:
    broken = spoil(folder, tmp_path / "broken")
    with pytest.raises(DataError) as error:
        opened(broken, tmp_path)
    for text in ("3 broken or missing videos", "v01.mp4: missing", "v05.mp4: empty file", "v09.mp4: cannot be decoded",
                 "--allow-missing 3"):
        assert text in str(error.value)
    with pytest.raises(DataError, match="3 broken"):
        opened(broken, tmp_path, allow_missing=2)
    videos = opened(broken, tmp_path, allow_missing=3)
    assert sorted(videos.missing) == ["v01.mp4", "v05.mp4", "v09.mp4"]
    assert sum(videos.decoder.values()) == 9 and not {"v01.mp4", "v05.mp4"} & set(ids(videos)["train"])
    whole = opened(folder, tmp_path)
    assert set(ids(videos)["calib"]) <= set(ids(whole)["calib"]) and videos.fingerprint != whole.fingerprint


def test_missing_does_not_move_the_calibration_split(folder: Path, tmp_path: Path) -> None:
    """Who is held out does not depend on what is broken."""
    whole = ids(opened(folder, tmp_path))
    broken = spoil(folder, tmp_path / "broken")
    left = ids(opened(broken, tmp_path, allow_missing=3))
    assert all(set(left[split]) <= set(whole[split]) for split in whole)


def test_long_lists_are_cut() -> None:
    from harness.data.check import Problem

    text = describe([Problem(f"v{i}", "missing") for i in range(25)], "set")
    assert "v19" in text and "v20" not in text and "and 5 more" in text


def test_full_check_compares_with_the_list(folder: Path) -> None:
    entries = list(read_csv(folder / "labels.csv").entries)
    assert check(entries, full=True) == []
    wrong = [e if e.id != "v02.mp4" else type(e)(e.id, e.path, 5, e.labels) for e in entries]
    assert check(wrong) == []
    (problem,) = check(wrong, full=True)
    assert problem.id == "v02.mp4" and problem.reason == "decodes to 4 frames, the list says 5"


def test_cache_knows_only_unchanged_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = spoil(folder, tmp_path / "broken")
    entries = read_csv(broken / "labels.csv").entries
    infos, problems = inspect(entries, cache_dir=tmp_path)
    looked: list[str] = []
    monkeypatch.setattr("harness.data.check.probe", lambda path, **_: looked.append(path.name) or infos["v00.mp4"])
    (broken / "v02.mp4").write_bytes((broken / "v03.mp4").read_bytes() + b"\0")
    again, _ = inspect(entries, cache_dir=tmp_path)
    assert sorted(looked) == ["v01.mp4", "v02.mp4", "v05.mp4", "v09.mp4"] and len(problems) == 3
    assert again["v07.mp4"] == infos["v07.mp4"]


def test_a_cache_that_cannot_be_read_or_written_is_no_obstacle(folder: Path, tmp_path: Path) -> None:
    entries = read_csv(folder / "labels.csv").entries
    (tmp_path / ".checked").write_text("a file where the folder should be")
    assert inspect(entries, cache_dir=tmp_path)[1] == []
    other = tmp_path / "other"
    inspect(entries, cache_dir=other)
    (cache,) = (other / ".checked").iterdir()
    cache.write_text("{")
    assert inspect(entries, cache_dir=other)[1] == []


def frame_folders(root: Path, counts: dict[str, int], template: str) -> None:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for t, image in enumerate(picture(frames=count, number=number)):
            cv2.imwrite(str(root / name / template.format(t + 1)), image)


def test_frame_folders_of_a_published_set(tmp_path: Path) -> None:
    root = tmp_path / "mini-kinetics"
    names = [f"air drumming/v{i}" for i in range(5)]
    frame_folders(root / "frames", dict.fromkeys(names, 3) | {"short": 2}, "img_{:05d}.jpg")
    (root / "mini_train_videofolder.txt").write_text("".join(f"{n} 3 {i // 2}\n" for i, n in enumerate(names[:4]))
                                                     + "short 2 1\n")
    (root / "mini_val_videofolder.txt").write_text(f"{names[4]} 3 199\n")
    videos = open_dataset("mini-kinetics", data_root=tmp_path, size="paper")
    assert videos.card.template == "img_{:05d}.jpg" and videos.num_classes == 200 and videos.resolution == 224
    assert videos.decoder == {"frames+cv2": 5} and videos.dropped == ["short"] and videos.missing == []
    assert videos.splits["test"][0].labels == (199,) and len(videos.untrained) == 198
    (root / "minik_classInd.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="2 classes, Mini-Kinetics has 200"):
        open_dataset("mini-kinetics", data_root=tmp_path, size="paper")


def test_absent_lists_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"put fcvid_train_split.txt into .*fcvid and the frames below it"):
        open_dataset("fcvid", data_root=tmp_path, size="paper")


def test_real_videos(tmp_path: Path) -> None:
    """All 120 clips decode to the frame counts of their list."""
    path = shared("ut_interaction", "labels.csv")
    videos = open_dataset(f"csv:{path}", data_root=tmp_path, size="tiny", train="set=1", test="set=2")
    stated = {e.id: e.frames for e in read_csv(path).entries}
    counted = {e.id: e.frames for v in videos.splits.values() for e in v}
    assert counted == stated and len(counted) == 120
