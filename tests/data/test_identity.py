"""A data set is what its files hold: not what they are called, nor where they lie; and no video in two splits."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from harness.commands.data import check_set
from harness.commands.options import Videos
from harness.contract.declarations import ClipRequest
from harness.data.check import check, inspect
from harness.data.clips import ClipDataset
from harness.data.decode import passing, read_jpeg
from harness.data.lists import VideoEntry, read_csv
from harness.data.videos import VideoSet, open_dataset
from harness.errors import DataError, UsageError
from harness.plan.units import DataSpec, read_spec, to_plain
from tests.commands.test_work import train_spec
from tests.data.media import picture, write

ROWS = [f"v{i:02d}.mp4,{i % 2},{'train' if i < 8 else 'test'}" for i in range(12)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos that differ, of two classes, with a CSV."""
    folder = tmp_path_factory.mktemp("made")
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 60, (8, 64, 96, 3))  # in every frame as much to store
        write(folder / f"v{i:02d}.mp4", (picture(frames=8) // 2 + noise).astype(np.uint8))
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *ROWS]) + "\n")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of them to do with as a test likes."""
    return Path(shutil.copytree(made, tmp_path / "videos"))


def opened(folder: Path, **options: object) -> VideoSet:
    settings = {"data_root": folder.parent / "data", "size": "tiny"} | options
    return open_dataset(f"csv:{folder / 'labels.csv'}", **settings)  # type: ignore[arg-type]


def damage(path: Path) -> None:
    """Zeros in mid-stream: the file opens, its packets can be counted, but not all of it decodes."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    first, last = (start + round(share * (len(data) - start)) for share in (0.4, 0.7))
    data[first:last] = bytes(last - first)
    path.write_bytes(data)


def test_equal_names_with_other_videos_are_another_set(folder: Path) -> None:
    before = opened(folder).fingerprint
    other = Path(shutil.copytree(folder, folder.parent / "other" / "videos"))
    write(other / "v03.mp4", picture(frames=8))
    assert opened(other, data_root=folder.parent / "data").fingerprint != before
    spec = train_spec(fingerprint=before)
    assert train_spec(fingerprint=opened(other).fingerprint).key != spec.key


def test_where_the_videos_lie_does_not_matter(folder: Path) -> None:
    before = opened(folder)
    moved = Path(shutil.copytree(folder, folder.parent / "elsewhere" / "videos"))
    after = opened(moved)
    assert after.fingerprint == before.fingerprint and after.content == before.content
    assert after.card.name == before.card.name == "csv:videos/labels.csv"
    assert (moved / "v00.mp4") in [e.path for e in after.splits["train"] + after.splits["calib"]]


def test_a_video_overwritten_in_place_is_seen(folder: Path) -> None:
    """Also where size and modification time stay, as a copy that keeps them leaves them."""
    before = opened(folder)
    assert opened(folder).fingerprint == before.fingerprint
    path = folder / "v03.mp4"
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = opened(folder)
    assert path.stat().st_size == state.st_size and after.fingerprint != before.fingerprint
    assert [i for i in before.contents if before.contents[i] != after.contents[i]] == ["v03.mp4"]


def test_work_is_not_done_on_data_that_changed_after_it_was_planned(folder: Path) -> None:
    spec = DataSpec(f"csv:{folder / 'labels.csv'}", str(folder.parent / "data"), "tiny")
    fingerprint = spec.open().fingerprint
    assert spec.open(fingerprint).fingerprint == fingerprint
    write(folder / "v03.mp4", picture(frames=8))
    with pytest.raises(DataError, match="has changed since this was planned"):
        spec.open(fingerprint)


def test_frames_overwritten_in_place_are_seen(tmp_path: Path) -> None:
    """A folder's own dates do not change when a file in it is written over."""
    folder = tmp_path / "v"
    folder.mkdir()
    for t, image in enumerate(picture(frames=5), 1):
        cv2.imwrite(str(folder / f"{t:05d}.jpg"), image)
    entry = VideoEntry("v", folder, 5, (0,))

    def content() -> str:
        return inspect([entry], cache_dir=tmp_path)[0]["v"].content

    before = content()
    assert content() == before
    cv2.imwrite(str(folder / "00002.jpg"), np.zeros((64, 96, 3), dtype=np.uint8))
    assert content() != before
    copied = VideoEntry("v", Path(shutil.copytree(folder, tmp_path / "w" / "v")), 5, (0,))
    assert inspect([copied])[0]["v"].content == content()


def test_a_relative_list_is_found_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spec = train_spec(data=DataSpec("csv:labels.csv", "data", "tiny"))
    stored = json.dumps(to_plain(spec))
    monkeypatch.chdir(folder.parent)
    data = read_spec(json.loads(stored)).data
    assert data.label() == "videos" and len(data.open().splits["test"]) == 4
    assert not (folder.parent / "data").exists() and (folder / "data").is_dir()


def test_protocols_that_mix_splits_are_refused(folder: Path) -> None:
    videos = opened(folder)
    videos.refuse_overlap(train="train", calib="calib", val="val", test="test")
    videos.refuse_overlap(train="train", calib="val", test="test")
    for roles in (
        {"calib": "test"}, {"test": "calib"}, {"calib": "train"}, {"train": "test"}, {"test": "val"}, {"val": "test"},
        {"train": "val"}, {"val": "train"},
    ):  # fmt: skip
        with pytest.raises(UsageError, match=r"videos? \(v\d+\.mp4.*\) would be used for"):
            videos.refuse_overlap(**({"train": "train", "calib": "calib", "test": "test"} | roles))
    with pytest.raises(UsageError, match="unknown split 'tset'.*did you mean 'test'"):
        videos.refuse_overlap(train="train", calib="calib", test="tset")


def test_validation_and_calibration_may_share_videos(folder: Path) -> None:
    """Both are held out of training, and neither is tested."""
    rows = [r.replace("v00.mp4,0,train", "v00.mp4,0,val").replace("v01.mp4,1,train", "v01.mp4,1,calib") for r in ROWS]
    shutil.copy(folder / "v00.mp4", folder / "copy.mp4")
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows, "copy.mp4,0,calib"]))
    videos = opened(folder)
    assert videos.duplicates == [("calib: copy.mp4", "val: v00.mp4")]


def test_copies_are_held_out_together(folder: Path) -> None:
    """The list says train for both; the split for calibration is ours, so it is ours to keep clean."""
    held = opened(folder).splits["calib"][0].id
    shutil.copy(folder / held, folder / "copy.mp4")
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *ROWS, f"copy.mp4,{int(held[1:3]) % 2},train"]))
    videos = opened(folder)
    assert [e.id for e in videos.splits["calib"]] == [held, "copy.mp4"] == [e.id for e in videos.splits["val"]]
    assert not {held, "copy.mp4"} & {e.id for e in videos.splits["train"]}


def test_a_class_keeps_a_training_video(folder: Path) -> None:
    """Whichever two videos have a class of their own: none is the one that is held out."""
    held = opened(folder).splits["calib"][0].id
    rows = [r.replace(f"{held},{int(held[1:3]) % 2}", f"{held},2") for r in ROWS]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    videos = opened(folder)
    assert held in {e.id for e in videos.splits["train"]} and videos.untrained == []


def test_a_full_check_is_remembered_until_the_video_changes(folder: Path) -> None:
    whole = (folder / "v03.mp4").read_bytes()
    damage(folder / "v03.mp4")
    root = folder.parent / "data"
    assert opened(folder).missing == [], "the quick check cannot see it"
    entries = read_csv(folder / "labels.csv").entries
    (problem,) = check(entries, full=True, cache_dir=root)
    assert problem.id == "v03.mp4" and "cannot be decoded" in problem.reason
    with pytest.raises(DataError, match=r"v03\.mp4: cannot be decoded.*\n.*--allow-missing 1"):
        opened(folder)
    left = opened(folder, allow_missing=1)
    assert left.missing == ["v03.mp4"] and "v03.mp4" not in left.contents
    (folder / "v03.mp4").write_bytes(whole)
    assert opened(folder).missing == []


def test_a_verdict_is_withdrawn_by_a_full_check(folder: Path) -> None:
    """A disk that failed once does not cost a video for ever."""
    videos = opened(folder)
    entry = videos.splits["train"][0]
    told = videos.quarantine(entry, DataError(f"{entry.path}: cannot be decoded (I/O error)"))
    assert "--allow-missing 1" in str(told)
    with pytest.raises(DataError, match=f"{entry.id}: cannot be decoded \\(I/O error\\)"):
        opened(folder)
    assert check([entry], full=True, cache_dir=folder.parent / "data") == []
    assert opened(folder).fingerprint == videos.fingerprint


def test_a_decode_error_in_training_quarantines_the_video(folder: Path) -> None:
    name = opened(folder).splits["train"][0].id
    damage(folder / name)
    videos = opened(folder)
    data = ClipDataset(videos, "train", (ClipRequest(4),), train=True, seed=0)
    with pytest.raises(DataError, match=rf"^{name}: cannot be decoded.*run again with --allow-missing 1"):
        [data[i] for i in range(len(data))]
    with pytest.raises(DataError, match=f"1 broken or missing video\n  {name}"):
        opened(folder)
    left = opened(folder, allow_missing=1)
    assert left.missing == [name] and left.fingerprint != videos.fingerprint
    data = ClipDataset(left, "train", (ClipRequest(4),), train=True, seed=0)
    assert len([data[i] for i in range(len(data))]) == len(videos.splits["train"]) - 1


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_fault_that_passes_brands_no_video(code: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = opened(folder)
    data = ClipDataset(videos, "train", (ClipRequest(4),), train=True, seed=0, cache_bytes=0)
    entries = read_csv(folder / "labels.csv").entries
    with monkeypatch.context() as patch:
        patch.setattr("harness.data.decode.av.open", lambda _: av.error.err_check(-code))
        with pytest.raises(DataError, match=rf"^{videos.splits['train'][0].id}: .*it may be whole") as caught:
            data[0]
        assert "--allow-missing" not in str(caught.value)
        assert len(check(entries, full=True, cache_dir=folder.parent / "data")) == len(entries)
    assert opened(folder).missing == []


def test_an_unreadable_frame_is_no_broken_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(DataError) as caught:
        read_jpeg(folder / "00001.jpg")
    assert passing(caught.value.__cause__)


def test_a_class_whose_videos_are_copies_of_the_held_out_one_is_refused(folder: Path) -> None:
    held = opened(folder).splits["calib"][0].id
    label = int(held[1:3]) % 2
    for row in ROWS[:8]:
        name = row.partition(",")[0]
        if int(name[1:3]) % 2 == label and name != held:
            shutil.copy(folder / held, folder / name)
    told = f"1 of 2 classes have no video in the train split .*: '{label}'"
    with pytest.raises(DataError, match=told):
        opened(folder)
    with pytest.raises(DataError, match=told):
        found = Videos(data_root=folder.parent / "data")
        check_set(f"csv:{folder / 'labels.csv'}", found, full=False, size="tiny", as_json=True)
    assert opened(folder, limit=6).untrained == [str(label)], "to try out; the record says so"


@pytest.mark.parametrize("table", [[], 3, {"x": 1}, "rows"])
def test_a_damaged_table_of_what_was_checked_is_no_end(table: object, folder: Path) -> None:
    root, entries = folder.parent / "data", read_csv(folder / "labels.csv").entries
    known, _ = inspect(entries, cache_dir=root)
    (file,) = (root / ".checked").glob("checked-*.json")
    stored = json.loads(file.read_text())
    rows: list[object] = [[], 3, None, ["a", True], ["a", True, {}], ["a", False, {"frames": "x"}], {}, "text"]
    damaged = dict.fromkeys(stored["table"])
    damaged.update(zip(damaged, rows, strict=False))
    file.write_text(json.dumps({**stored, "table": damaged if table == "rows" else table}))
    assert inspect(entries, cache_dir=root) == (known, [])
    assert json.loads(file.read_text())["table"].items() >= stored["table"].items(), "it is mended"
