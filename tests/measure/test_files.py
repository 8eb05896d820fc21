"""From file to logits: lazy and eager clips in turns, the same logits, the frames that each decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.contract.declarations import ClipRequest
from harness.contract.recognizer import EfficientRecognizer
from harness.data.videos import VideoSet, open_dataset
from harness.measure.files import FromFiles, measure_files
from harness.measure.latency import prepared
from harness.measure.launches import laziness, merged
from harness.measure.views import view_datasets
from harness.store.records import LATENCY_SCHEMA
from tests.data.media import picture, write

FRAMES = 20
REQUESTS = (ClipRequest(5),)  # frames 2, 6, 10, 14 and 18 of 20


class Peek(EfficientRecognizer):
    """Looks at frame 6, and at all others of a video whose first pixel there is dark."""

    exits, exit_frames = 2, (1, 5)

    def __init__(self) -> None:
        super().__init__(2, resolution=112)
        self.seen: list[str] = []

    def begin(self, clips, generator=None):
        self.seen.append(type(clips["frames"].source).__name__)
        return clips["frames"]

    def segment(self, state, first, last):
        x = state.at([1])[:, 0, 0, 50, 20] if last == 0 else state.all()[:, :, 0, 50, 20].float().mean(1)
        return state, torch.stack((x.float(), 100 - x.float()), 1) / 100


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    folder = tmp_path_factory.mktemp("files")
    lines = ["path,label,split"]
    for number, split in enumerate(("test", "test", "train", "train", "calib")):
        dark = picture(160, 120, FRAMES, number)
        dark[:, :, :80] = (200, 60, 40) if number == 0 else (60, 60, 40)  # test video 0 is sure at once
        write(folder / f"{number}.mp4", dark, **{"x264-params": "keyint=100:scenecut=0:bframes=0"})
        lines.append(f"{number}.mp4,{number % 2},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return open_dataset(f"csv:{folder / 'labels.csv'}", data_root=folder, size="tiny")


THRESHOLDS = {"thresholds": [0.7, -np.inf]}


@pytest.mark.parametrize("views", ["centre", "three-crop"])
def test_lazily_and_eagerly_in_turns(videos: VideoSet, views: str) -> None:
    peek = Peek()
    datasets = view_datasets(videos, "test", REQUESTS, views, cache_bytes=0)
    with prepared(peek) as device:
        measured, outputs = measure_files(
            peek, datasets, [[0, 1], [1, 0]], THRESHOLDS, device=device, min_iterations=4, min_seconds=0, warmup=1
        )
    turns = ["_Source", "Tensor", "Tensor", "_Source"]
    assert peek.seen[:: len(datasets)][-8:] == turns * 2, "and the other way round"
    assert measured["status"] == "ok" and len(measured["wall_s"]) == len(measured["eager_clips"]["wall_s"]) == 4
    assert measured["videos"] == [2] * 4 and measured["device_s"] is measured["peak_memory_bytes"] is None
    assert set(measured["phases_s"]) == {"decode", "transform", "transfer", "model"}
    assert measured["frames_decoded"] == pytest.approx((7 + 19) / 2), "frame 6, and all up to 18"
    assert measured["eager_clips"]["frames_decoded"] == 19 * len(datasets)
    exits = [output.exit_step.tolist() for output in outputs]
    assert exits == [[0, 1], [1, 0]] * 2
    for lazy, eager in zip(outputs[:2], outputs[2:], strict=True):
        assert torch.equal(lazy.logits, eager.logits)


def test_a_method_that_asks_for_all_decodes_as_much_lazily(videos: VideoSet) -> None:
    datasets = view_datasets(videos, "test", REQUESTS, "centre", cache_bytes=0)
    peek = Peek()
    with prepared(peek) as device:
        measured, _ = measure_files(
            peek, datasets, [[0], [1]], {"exit_at": 1}, device=device, min_iterations=1, min_seconds=0, warmup=0
        )
    assert measured["frames_decoded"] == measured["eager_clips"]["frames_decoded"] == 19


def test_files_are_closed_where_a_forward_fails(videos: VideoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr("harness.measure.files.LazyBatch.close", lambda batch: closed.append(len(batch)))
    peek = Peek()
    peek.segment = None  # type: ignore[assignment, method-assign]
    datasets = view_datasets(videos, "test", REQUESTS, "centre", cache_bytes=0)
    with pytest.raises(TypeError):
        FromFiles(peek, datasets).infer({"lazy": torch.tensor([0, 1])}, THRESHOLDS, trace=trace(2))
    assert closed == [2]


def trace(videos: int):
    from harness.contract.trace import Trace

    return Trace(videos)


def test_launches_as_one_record_and_what_laziness_saves() -> None:
    launches = [launch(lazy, 20.0) for lazy in (10.0, 12.0, 14.0)]
    found = merged(launches)
    assert found["eager_clips"] == {"wall_s": [0.02] * 6, "frames_decoded": 23.0}
    assert found["phases_s"] == pytest.approx({"decode": 0.012, "model": 0.001})
    assert {name.partition(".")[0] for name in LATENCY_SCHEMA} >= set(found)
    saved = laziness([found])
    assert (saved["frames_decoded"], saved["eager_frames_decoded"]) == (16.0, 23.0)
    assert saved["eager_median_ms"] == pytest.approx(20)
    assert saved["lazy_over_eager"] == pytest.approx((0.5 * 0.6 * 0.7) ** (1 / 3))
    assert saved["lazy_low"] < 0.5 and saved["lazy_high"] > 0.7
    alone = laziness([merged(launches[:1])])
    assert (alone["lazy_over_eager"], alone["lazy_low"]) == (pytest.approx(0.5), None)
    nothing = merged([launch(1.0, 1.0, status="out of memory", wall_s=[])])
    assert set(laziness([nothing]).values()) == {None}


def launch(lazy_ms: float, eager_ms: float, **changes):
    conditions = {"before": {"affinity": 2}, "after": {"affinity": 2}}
    return {
        "status": "ok", "wall_s": [lazy_ms / 1e3] * 2, "device_s": None, "videos": [1, 1], "gflops": [0.5, 0.5],
        "phases_s": {"decode": lazy_ms / 1e3, "model": 0.001}, "frames_decoded": 16.0, "peak_memory_bytes": None,
        "eager_clips": {"wall_s": [eager_ms / 1e3] * 2, "frames_decoded": 23.0}, "warmup": 5, "others": 0.0,
        "gpu_others": None, "slowed": [], "clocks": conditions, "outputs": None,
        "prepare_s": 0.0, "unprepared": 0, "compiled_share": None, "forms": {}, "threads": 1, "device": {},
        "dataset": {}, "sources": {}, "made_with": {}, **changes,
    }  # fmt: skip
