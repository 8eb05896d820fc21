"""Decoding: every kind of file gives the right frames in the right colours, or an error that names it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from harness.data.decode import FAST_PATH, FRAMES_PATH, SWSCALE_PATH, count_frames, decode, probe, to_rgb
from harness.errors import DataError
from tests.data.media import picture, shared, turn, write


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ({}, FAST_PATH),
        ({"colorspace": 5}, FAST_PATH),
        ({"colorspace": 1}, SWSCALE_PATH),
        ({"pix_fmt": "yuv420p10le"}, SWSCALE_PATH),
        ({"pix_fmt": "yuvj420p"}, SWSCALE_PATH),
        ({"pix_fmt": "yuv444p"}, SWSCALE_PATH),
    ],
    ids=["plain", "bt601", "bt709", "10-bit", "full-range", "444"],
)
def test_colours_and_path(tmp_path: Path, kind: dict, path: str) -> None:
    video = picture()
    file = write(tmp_path / "a.mp4", video, **kind)
    info = probe(file)
    assert (info.frames, info.width, info.height, info.decoder_path) == (6, 96, 64, path)
    frames = decode(file, [0, 5])
    assert frames.shape == (2, 64, 96, 3) and frames.dtype == np.uint8
    assert difference(frames, video[[0, 5]]) < 4
    for y, x in ((8, 20), (30, 20), (30, 75), (60, 50)):  # inside the fields, away from chroma edges
        assert np.abs(frames[0, y, x].astype(int) - video[0, y, x]).max() <= 5


def test_frames_decoded_on_the_way_are_counted(tmp_path: Path) -> None:
    file, tally = write(tmp_path / "a.mp4", picture()), Counter[str]()
    assert len(decode(file, [0, 4], tally=tally)) == 2
    assert tally["frames"] == 5


def test_wrong_matrix_would_show(tmp_path: Path) -> None:
    """The tolerance above tells BT.601 from BT.709."""
    file = write(tmp_path / "a.mp4", picture(), colorspace=1)
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        wrong = cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420)
    assert np.abs(wrong[30, 20].astype(int) - picture()[0, 30, 20]).max() > 10


def test_odd_size(tmp_path: Path) -> None:
    video = picture(width=95, height=63)
    file = write(tmp_path / "odd.mkv", video, pix_fmt="yuv444p")
    assert probe(file).decoder_path == SWSCALE_PATH
    assert difference(decode(file, [3])[0], video[3]) < 4


def test_odd_size_420(tmp_path: Path) -> None:
    video = picture(width=95, height=63)
    file = write(tmp_path / "odd.mkv", video, codec="ffv1", pix_fmt="yuv420p")
    assert probe(file).decoder_path == SWSCALE_PATH
    assert decode(file, [3]).shape == (1, 63, 95, 3)
    assert difference(decode(file, [3])[0], video[3]) < 4


def test_fast_path_agrees_with_swscale(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(0, 25, (1, 16, 24, 3))
    smooth = cv2.resize(noise[0], (96, 64), interpolation=cv2.INTER_CUBIC)
    video = np.clip(picture() + smooth, 0, 255).astype(np.uint8)
    file = write(tmp_path / "a.mp4", video)
    with av.open(str(file)) as container:
        frame = next(container.decode(video=0))
        slow = frame.reformat(format="rgb24").to_ndarray()
        assert difference(to_rgb(frame), slow) < 2


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied_as_cv2_does(tmp_path: Path, degrees: int) -> None:
    file = turn(write(tmp_path / "a.mp4", picture()), degrees)
    info, frame = probe(file), decode(file, [0])[0]
    assert (info.height, info.width) == frame.shape[:2] == ((96, 64) if degrees != 180 else (64, 96))
    reader = cv2.VideoCapture(str(file))
    assert difference(frame, cv2.cvtColor(reader.read()[1], cv2.COLOR_BGR2RGB)) < 3
    assert difference(frame, np.rot90(picture()[0], -degrees // 90)) < 4


def test_variable_frame_rate_counts_frames_not_seconds(tmp_path: Path) -> None:
    video = picture(frames=8)
    file = write(tmp_path / "a.mkv", video, times=[0, 10, 15, 90, 91, 200, 480, 500])
    assert probe(file).frames == 8
    bars = decode(file, range(8))[:, 60, 50, 0]
    np.testing.assert_allclose(bars, 20 + 30 * np.arange(8) % 210, atol=4)


def test_indices_repeat_and_need_no_order(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", picture())
    frames = decode(file, [4, 1, 1, 0])
    np.testing.assert_array_equal(frames[1], frames[2])
    np.testing.assert_array_equal(frames[0], decode(file, [4])[0])
    with pytest.raises(DataError, match="non-negative"):
        decode(file, [-1])


def test_b_frames_come_in_display_order(tmp_path: Path) -> None:
    video = picture(frames=8)
    file = write(tmp_path / "a.mp4", video, bf="3")
    np.testing.assert_allclose(decode(file, range(8))[:, 60, 50, 0], 20 + 30 * np.arange(8) % 210, atol=4)


def test_frame_beyond_the_end_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.mp4", picture())
    with pytest.raises(DataError, match=r"a\.mp4: ends after 6 frames, frame 6 was wanted"):
        decode(file, [2, 6])


def broken_files(folder: Path) -> dict[str, Path]:
    """One file of every kind that must be refused."""
    whole = write(folder / "whole.mp4", picture(frames=40), container={"movflags": "faststart"}).read_bytes()
    late = write(folder / "late.mp4", picture(frames=40)).read_bytes()
    matroska = write(folder / "whole.mkv", np.repeat(picture(frames=6), 20, axis=0), g="10").read_bytes()
    riff = write(folder / "whole.avi", picture(), codec="mpeg4").read_bytes()
    contents = {
        "empty.mp4": b"", "text.mp4": b"this is not a video\n" * 50, "no-header.mp4": late[: len(late) // 2],
        "half.mp4": whole[: int(len(whole) * 0.6)], "half.mkv": matroska[: len(matroska) // 2],
        "half.avi": riff[: int(len(riff) * 0.7)], "noise.avi": bytes(range(256)) * 20,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: folder / name for name in contents} | {"missing.mp4": folder / "missing.mp4"}


def test_broken_files_are_named(tmp_path: Path) -> None:
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(DataError, match=name):
            probe(path)


def test_audio_only(tmp_path: Path) -> None:
    file = tmp_path / "sound.mp4"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(DataError, match="no video stream"):
        probe(file)


def test_frame_folder(tmp_path: Path) -> None:
    video = picture(frames=4)
    for t, image in enumerate(video):
        cv2.imwrite(str(tmp_path / f"img_{t + 1:05d}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    template = "img_{:05d}.jpg"
    info = probe(tmp_path, template=template)
    assert (info.frames, info.width, info.height, info.decoder_path) == (4, 96, 64, FRAMES_PATH)
    assert difference(decode(tmp_path, [3, 0], template=template), video[[3, 0]]) < 4
    with pytest.raises(DataError, match=r"img_00005\.jpg"):
        decode(tmp_path, [4], template=template)
    with pytest.raises(DataError, match="the list names 9 frames"):
        probe(tmp_path, template=template, frames=9)
    (tmp_path / "img_00002.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"img_00002\.jpg: not a readable image"):
        decode(tmp_path, [1], template=template)
    with pytest.raises(DataError, match="no frame named 00001.jpg"):
        probe(tmp_path)


@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "test.mp4", "test.avi"])
def test_real_clips_have_as_many_frames_as_cv2_reads(name: str) -> None:
    file = shared("clips", name)
    reader, count = cv2.VideoCapture(str(file)), 0
    while reader.read()[0]:
        count += 1
    assert probe(file).frames == count_frames(file) == count
