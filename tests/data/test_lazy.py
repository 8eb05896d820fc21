"""Lazy clips are the eager ones, frame by frame; how many frames are decoded follows from keyframes; files close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

import harness.data.reader as reading
from harness.contract.declarations import ClipRequest
from harness.contract.frames import Frames
from harness.contract.segments import until_sure
from harness.contract.trace import Trace
from harness.data.clips import ClipDataset, collate
from harness.data.decode import decode
from harness.data.lazy import LazyBatch
from harness.data.reader import FileReader, open_reader
from harness.data.videos import VideoSet, open_dataset
from harness.errors import DataError, UsageError
from tests.data.media import picture, shared, turn, write

KEYS_EVERY_10: dict[str, str] = {
    "x264-params": "keyint=10:min-keyint=10:scenecut=0:bframes=0"
}
REQUESTS = (
    ClipRequest(12, "candidates", "uniform"),
    ClipRequest(4, "glance", "subset", subset_of="candidates", group=3, resolution=64),
    ClipRequest(5, "segments"),
)


def moving(frames: int, number: int = 0, height: int = 64, width: int = 96) -> np.ndarray:
    """A video each of whose frames differs from all others."""
    noise = np.random.default_rng(number).integers(0, 60, (frames, height // 8, width // 8, 3), dtype=np.uint8)
    return picture(width, height, frames, number % 10) // 2 + noise.repeat(8, 1).repeat(8, 2)


def reader(path: Path, wanted: Sequence[int]) -> FileReader:
    found = open_reader(path, wanted=wanted, prepare=lambda image: image)
    assert isinstance(found, FileReader)
    return found


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames, a keyframe every 10."""
    return write(tmp_path_factory.mktemp("keyed") / "a.mp4", moving(40), **KEYS_EVERY_10)


def test_the_file_is_as_the_counts_below_suppose(keyed: Path) -> None:
    with av.open(str(keyed)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 10, 20, 30] and len(packets) == 40


@pytest.mark.parametrize(
    ("asked", "decoded"),
    [
        ((3,), [4]),
        ((12,), [3]),  # from keyframe 10
        ((12, 15), [3, 6]),  # goes on
        ((12, 35), [3, 9]),  # a keyframe lies between
        ((12, 19, 20), [3, 10, 11]),  # the next keyframe is the next frame
        ((15, 12), [6, 6]),  # passed on the way and kept
        ((35, 12), [6, 9]),  # back
        ((35, 3), [6, 10]),  # back to the start
        ((35, 12, 38), [6, 9, 12]),  # the first decoder waited at 36
        ((35, 32, 12, 38), [6, 6, 9, 12]),
    ],
)
def test_frames_decoded_in_closed_form(keyed: Path, asked: tuple[int, ...], decoded: list[int]) -> None:
    source, counts = reader(keyed, asked), []
    for number in asked:
        np.testing.assert_array_equal(source.read(number), decode(keyed, [number])[0])
        counts.append(source.decoded)
    assert counts == decoded
    source.read(asked[0])
    assert source.decoded == decoded[-1], "asked once more"


def test_no_frame_is_decoded_twice(keyed: Path) -> None:
    frames = decode(keyed, range(40))
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(40)[:12].tolist()
        source = reader(keyed, order)
        for number in order:
            np.testing.assert_array_equal(source.read(number), frames[number])
        groups = {number // 10: max(n % 10 for n in order if n // 10 == number // 10) for number in order}
        assert source.decoded == sum(last + 1 for last in groups.values())


def test_only_so_many_decoders_wait(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "DECODERS", 2)
    source, counts = reader(keyed, [2, 12, 22, 5, 15, 25]), []
    for number in (22, 12, 2, 25, 15, 5):
        np.testing.assert_array_equal(source.read(number), decode(keyed, [number])[0])
        counts.append(source.decoded)
        assert source.open <= 2
    assert counts == [3, 6, 9, 15, 21, 24], "25 and 15 from their keyframes again; the one at 2 had waited"


def test_what_is_passed_beyond_the_memory_for_it_is_prepared_at_once(
    keyed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_bytes", lambda frame: 100)
    monkeypatch.setattr(reading, "KEPT_BYTES", 100)
    prepared: list[int] = []
    source = open_reader(keyed, wanted=[5, 6, 7], prepare=lambda image: (prepared.append(len(image)), image)[1])
    source.read(7)
    assert len(prepared) == 2, "7, which was asked for, and 6, for which there was no room"
    for number in (5, 6):
        np.testing.assert_array_equal(source.read(number), decode(keyed, [number])[0])
    assert source.decoded == 8


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "open groups": ("mp4", {"x264-params": "keyint=10:scenecut=0:open-gop=1:bframes=3"}),
    "B-frames": ("mp4", {"x264-params": "keyint=10:scenecut=0:bframes=3"}),
    "intra refresh": ("mp4", {"x264-params": "keyint=10:intra-refresh=1"}),
    "Matroska": ("mkv", {"x264-params": "keyint=10:scenecut=0:bframes=3"}),
    "variable rate": ("mkv", {"times": [t * t for t in range(40)], **KEYS_EVERY_10}),
    "MPEG-4": ("avi", {"codec": "mpeg4", "g": "10"}),
    "VP8": ("webm", {"codec": "libvpx", "g": "10"}),
    "all keyframes": ("mkv", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "10 bit": ("mp4", {"pix_fmt": "yuv420p10le", **KEYS_EVERY_10}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_in_any_order_of_any_kind_of_file(tmp_path: Path, kind: str) -> None:
    suffix, options = KINDS[kind]
    file = write(tmp_path / f"a.{suffix}", moving(40), **options)
    frames = decode(file, range(40))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(40)[:9].tolist()
        source = reader(file, order)
        for number in order:
            np.testing.assert_array_equal(source.read(number), frames[number])


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "test.mp4", "test.avi"])
def test_real_clips_behind_every_keyframe(name: str) -> None:
    file = shared("clips", name)
    wanted = [12, 120, 162, *((240, 269) if name != "test.avi" else ())]
    frames = decode(file, wanted)
    source = reader(file, wanted)
    for place in reversed(range(len(wanted))):
        np.testing.assert_array_equal(source.read(wanted[place]), frames[place])


def test_a_turned_video(tmp_path: Path) -> None:
    file = turn(write(tmp_path / "a.mp4", moving(40), **KEYS_EVERY_10), 90)
    np.testing.assert_array_equal(reader(file, [33]).read(33), decode(file, [33])[0])


def test_an_index_that_does_not_hold_is_given_up(keyed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a file whose keyframes are none, or whose packets are not frames."""
    look_up = reading._look_up

    def wrong(*args: Any) -> Any:
        index = look_up(*args)
        return reading._Index(tuple(time + 1 for time in index.times), index.keys)

    monkeypatch.setattr(reading, "_look_up", wrong)
    source = reader(keyed, [35, 12])
    np.testing.assert_array_equal(source.read(35), decode(keyed, [35])[0])
    assert source.decoded == 1 + 36, "the first behind the seek, then all from the start"
    source.read(12)
    assert source.decoded == 37, "kept from the second time"


def test_a_file_is_open_while_its_frames_are_wanted(keyed: Path) -> None:
    source = reader(keyed, [3, 8])
    assert not source.open, "opened by the first question"
    source.read(3)
    assert source.open == 1
    source.read(8)
    assert not source.open, "all that is wanted is there"
    source.close()
    np.testing.assert_array_equal(source.read(8), decode(keyed, [8])[0])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    """Video files of both decoder paths, a folder of JPEGs, and a video that is shorter than its clips."""
    folder = tmp_path_factory.mktemp("lazy")
    write(folder / "v0.mp4", moving(40, 0, 120, 160), **KEYS_EVERY_10)
    write(folder / "v1.mp4", moving(23, 1, 160, 120), colorspace=1)
    write(folder / "v2.mp4", moving(3, 2, 120, 160))
    (folder / "v4").mkdir()
    for t, image in enumerate(moving(14, 4, 120, 160)):
        cv2.imwrite(str(folder / "v4" / f"{t + 1:05d}.jpg"), image[..., ::-1])
    return opened(folder, ["v2.mp4", "v0.mp4", "v1.mp4", "v4"])


def opened(folder: Path, tested: Sequence[str]) -> VideoSet:
    """A set in which these are tested."""
    lines = ["path,label,split", *(f"{name},{i % 2},test" for i, name in enumerate(tested))]
    for i, split in enumerate(("train", "train", "calib")):
        write(folder / f"{i}.mp4", moving(6, 10 + i, 120, 160))
        lines.append(f"{i}.mp4,{i % 2},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return open_dataset(f"csv:{folder / 'labels.csv'}", data_root=folder, size="tiny")


def dataset(videos: VideoSet, requests: Sequence[ClipRequest] = REQUESTS, **options: Any) -> ClipDataset:
    return ClipDataset(videos, "test", requests, **{"train": False, "seed": 0, "cache_bytes": 0} | options)


def eager(source: ClipDataset, chosen: Sequence[int]) -> Mapping[str, torch.Tensor]:
    clips: Mapping[str, torch.Tensor] = collate([source[i] for i in chosen])["inputs"]
    return clips


def test_lazy_clips_are_the_eager_ones(videos: VideoSet) -> None:
    chosen = [2, 0, 3, 1]
    views = [dataset(videos, view=view, views="three-crop") for view in range(3)]
    with LazyBatch(views, chosen) as batch:
        assert len(batch) == 4
        for view, clips in zip(views, batch.views, strict=True):
            for name, clip in eager(view, chosen).items():
                assert batch.views[0][name].source.shape == tuple(clip.shape)
                assert torch.equal(clips[name].all(), clip), name
        for video, index in enumerate(chosen):  # every view and request shares what is decoded
            distinct = len(set(np.concatenate(list(views[0].frame_numbers(index).values())).tolist()))
            assert distinct <= batch.decoded[video] <= (videos.splits["test"][index].frames or 0)


def test_single_frames_of_single_videos(videos: VideoSet) -> None:
    clips = eager(dataset(videos), [1, 2])
    with LazyBatch([dataset(videos)], [1, 2]) as batch:
        own = torch.tensor([[11, 2], [0, 0]])
        found = batch.views[0]["candidates"].at(own)
        assert torch.equal(found, torch.stack([clips["candidates"][i][own[i]] for i in range(2)]))
        for step in (-1, 5):
            with pytest.raises(IndexError, match="out of range"):
                batch.views[0]["segments"].at([step])
        (left,) = batch.views[0]["segments"].keep(np.array([1])).at([4])
        assert torch.equal(left, clips["segments"][1, [4]])
        assert set(batch.seconds) == {"decode", "transform", "transfer"} and min(batch.seconds.values()) >= 0
    with pytest.raises(UsageError, match="test pipeline"):
        LazyBatch([dataset(videos, train=True)], [0])


def test_clips_joined_with_others(videos: VideoSet) -> None:
    source = dataset(videos)
    with LazyBatch([source], [0, 1]) as one, LazyBatch([source], [2]) as other:
        joined = Frames.join([one.views[0]["segments"].keep(np.array([1])), other.views[0]["segments"]])
        assert torch.equal(joined.all(), eager(source, [1, 2])["segments"])
        joined.leave(np.array([1]))
        assert [video.askers for batch in (one, other) for video in batch._videos] == [3, 3, 2]


class Middle:
    """Looks at the middle frame, then at the first; videos of bright middles leave."""

    exits, exit_score = 2, "logit"

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> Frames:
        return clips["segments"]

    def segment(self, state: Frames, first: int, last: int) -> tuple[Frames, torch.Tensor]:
        logits = state.at([2] if last == 0 else [0])[:, 0, :, 50, 50].float()
        return state, logits


def test_videos_that_leave_save_decoding_and_close(videos: VideoSet) -> None:
    source = dataset(videos, (ClipRequest(5, "segments"),))
    with LazyBatch([source], [1, 2]) as batch:
        scores = Middle().segment(batch.views[0]["segments"], 0, 0)[1].amax(1)
        spent = batch.decoded.tolist()
    assert spent == [1, 12], "frame 20 is a keyframe; the other file has one group, up to frame 11"
    threshold = float(scores.mean())
    stays = int(scores.argmin())
    with LazyBatch([source], [1, 2]) as batch:
        trace = Trace(2)
        until_sure(Middle(), batch.views[0], [threshold, -np.inf], trace, None)
        assert trace.exit_step is not None and trace.exit_step.tolist() == [int(i == stays) for i in range(2)]
        assert batch.decoded[1 - stays] == spent[1 - stays]
        readers = [video.reader for video in batch._videos]
        closed = [isinstance(r, FileReader) and not r.open for r in readers]
        assert closed == [i != stays for i in range(2)]
    assert all(isinstance(r, FileReader) and not r.open and not r._ready for r in readers)


def test_a_broken_video_is_named_and_remembered(tmp_path: Path) -> None:
    for number, name in enumerate(("broken.mp4", "whole.mp4")):
        write(tmp_path / name, moving(40, number, 120, 160), **KEYS_EVERY_10)
    videos = opened(tmp_path, ["broken.mp4", "whole.mp4"])
    file = tmp_path / "broken.mp4"
    with av.open(str(file)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(file.read_bytes())
    for place, size in places[20:30]:
        data[place : place + size] = bytes(size)
    file.write_bytes(data)
    source = dataset(videos, (ClipRequest(4),))  # frames 5, 15, 25 and 35
    with pytest.raises(DataError, match=r"broken\.mp4: .*repair it, or run again with --allow-missing 1"):
        source[0]
    with LazyBatch([source], [1, 0]) as batch:
        frames = batch.views[0]["frames"]
        frames.at([0, 1, 3])  # the damage lies in none of these
        with pytest.raises(DataError, match=r"broken\.mp4: .*repair it, or run again with --allow-missing 1"):
            frames.at([2])
    with pytest.raises(DataError, match=r"broken\.mp4"):
        opened(tmp_path, ["broken.mp4", "whole.mp4"])
    with pytest.raises(DataError, match="ends after 40 frames, frame 40 was wanted"):
        reader(tmp_path / "whole.mp4", [40]).read(40)
