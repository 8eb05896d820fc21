"""Clips: keyed randomness, one draw per clip, cache that changes nothing, batches that mmengine accepts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms as torchvision_transforms

from harness.contract.declarations import ClipRequest
from harness.contract.preprocessor import ClipPreprocessor
from harness.data.clips import CACHE, ClipDataset, collate, trained_first
from harness.data.decode import decode
from harness.data.videos import VideoSet, open_dataset
from harness.errors import UsageError
from tests.data.media import picture, write

from mmaction.registry import MODELS

TWO = (ClipRequest(4, "glance"), ClipRequest(4, "focus", crop="own"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> VideoSet:
    folder = tmp_path_factory.mktemp("clips")
    lines = ["path,label,set"]
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 40, (1, 120, 160, 3))
        write(folder / f"v{i}.mp4", (picture(160, 120, 9) // 2 + noise).astype(np.uint8))
        lines.append(f"v{i}.mp4,{i % 3},{1 + i // 4}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return open_dataset(f"csv:{folder / 'labels.csv'}", data_root=folder, size="tiny", train="set=1", test="set=2")


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    CACHE.clear()


def dataset(videos: VideoSet, split: str = "train", requests: tuple = TWO, **options: object) -> ClipDataset:
    settings = {"train": split == "train", "seed": 3} | options
    return ClipDataset(videos, split, requests, **settings)  # type: ignore[arg-type]


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a["inputs"][n], b["inputs"][n]) for n in a["inputs"])


def test_shapes_and_metainfo(videos: VideoSet) -> None:
    item = dataset(videos)[1]
    assert {n: tuple(c.shape) for n, c in item["inputs"].items()} == {"glance": (4, 3, 112, 112),
                                                                     "focus": (4, 3, 112, 112)}
    assert all(c.dtype == torch.uint8 and c.is_contiguous() for c in item["inputs"].values())
    sample = item["data_samples"]
    entry = videos.splits["train"][1]
    assert sample.gt_label.tolist() == list(entry.labels)
    assert (sample.video_id, sample.index, sample.split) == (entry.id, 1, "train")
    assert set(sample.frame_indices) == {"glance", "focus"} and max(sample.frame_indices["glance"]) < 9


def test_randomness_is_keyed_by_seed_epoch_and_index(videos: VideoSet) -> None:
    first, again = dataset(videos), dataset(videos)
    assert equal(first[2], again[2])
    again[0], again[1]
    assert equal(first[2], again[2])
    again.set_epoch(1)
    assert not equal(first[2], again[2])
    again.set_epoch(0)
    assert equal(first[2], again[2])
    assert not equal(first[2], dataset(videos, seed=4)[2])
    repeated = dataset(videos, repeats=2)
    assert len(repeated) == 2 * len(first) and equal(first[2], repeated[2])
    assert not equal(repeated[2], repeated[2 + len(first)])


def test_workers_change_nothing(videos: VideoSet) -> None:
    data = dataset(videos)
    data.set_epoch(5)
    alone = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=1, num_workers=1, collate_fn=collate, persistent_workers=True)
    for epoch in (4, 5):  # a persistent worker learns of the new epoch
        data.set_epoch(epoch)
        batches = list(loader)
    assert all(torch.equal(b["inputs"]["focus"][0], a["inputs"]["focus"]) for a, b in zip(alone, batches, strict=True))


def test_cache_changes_nothing(videos: VideoSet) -> None:
    cached, plain = dataset(videos), dataset(videos, cache_bytes=0)
    reference = [plain[i] for i in range(3)]
    assert not CACHE.videos
    assert all(equal(cached[i], reference[i]) for i in range(3)) and len(CACHE.videos) == 3
    assert all(equal(cached[i], reference[i]) for i in range(3))
    assert CACHE.bytes == 3 * 9 * 128 * 171 * 3
    for kept in CACHE.videos.values():
        kept[:] = 0
    assert all(equal(plain[i], reference[i]) for i in range(3)), "nothing comes from a cache that is off"


def test_cache_keeps_to_its_limit(videos: VideoSet) -> None:
    small = dataset(videos, cache_bytes=1_000_000)
    for i in range(3):
        small[i]
    assert not CACHE.videos
    dataset(videos, "test", cache_bytes=2_000_000)[0]
    limited = dataset(videos, cache_bytes=2_000_000)
    assert all(equal(limited[i], dataset(videos, cache_bytes=0)[i]) for i in range(3))
    assert CACHE.bytes <= 2_000_000


def test_shared_and_own_crops(videos: VideoSet) -> None:
    """With the same frames, shared crops give the same clip and own crops differ."""
    frames = ClipRequest(9, "a")
    shared = dataset(videos, requests=(frames, ClipRequest(9, "b")))
    own = dataset(videos, requests=(frames, ClipRequest(9, "b", crop="own")))
    same = [torch.equal(*shared[i]["inputs"].values()) for i in range(3)]
    apart = [torch.equal(*own[i]["inputs"].values()) for i in range(3)]
    assert all(same) and not all(apart)
    test = ClipDataset(videos, "test", own.requests, train=False, seed=0)
    assert torch.equal(*test[0]["inputs"].values())


def test_test_pipeline_is_the_centre_crop(videos: VideoSet) -> None:
    import cv2

    request = ClipRequest(3)
    item = ClipDataset(videos, "test", [request], train=False, seed=0)[0]
    assert item["data_samples"].frame_indices == {"frames": [1, 4, 7]}
    frames = decode(videos.splits["test"][0].path, [1, 4, 7])
    for clip, frame in zip(item["inputs"]["frames"], frames, strict=True):
        big = cv2.resize(frame, (171, 128), interpolation=cv2.INTER_LINEAR)
        assert torch.equal(clip, torch.from_numpy(big[8:120, 30:142]).permute(2, 0, 1))


def test_three_views_and_request_resolution(videos: VideoSet) -> None:
    views = [dataset(videos, "test", (ClipRequest(2),), view=v, views="three-crop")[0]["inputs"]["frames"]
             for v in range(3)]
    assert torch.equal(views[1], dataset(videos, "test", (ClipRequest(2),))[0]["inputs"]["frames"])
    assert not torch.equal(views[0], views[2])
    small = dataset(videos, "test", (ClipRequest(2, resolution=80),))[0]["inputs"]["frames"]
    assert small.shape == (2, 3, 80, 80)


def test_wrong_use(videos: VideoSet) -> None:
    with pytest.raises(UsageError, match="unknown split 'tset'"):
        dataset(videos, "tset")
    with pytest.raises(UsageError, match="distinct names"):
        dataset(videos, requests=(ClipRequest(2), ClipRequest(4)))
    with pytest.raises(IndexError):
        dataset(videos)[99]


def test_collate_and_preprocessor(videos: VideoSet) -> None:
    from mmengine.dataset import pseudo_collate

    data = dataset(videos)
    items = [data[0], data[1]]
    batch = collate(items)
    assert batch["inputs"]["glance"].shape == (2, 4, 3, 112, 112) and len(batch["data_samples"]) == 2
    preprocessor = MODELS.build({"type": "ClipPreprocessor"})
    assert isinstance(preprocessor, ClipPreprocessor)
    for form in (batch, pseudo_collate(items)):
        out = preprocessor(form, training=True)
        assert set(out) == {"inputs", "data_samples"} and len(out["data_samples"]) == 2
        for name in ("glance", "focus"):
            assert out["inputs"][name].dtype == torch.uint8
            assert torch.equal(out["inputs"][name], batch["inputs"][name])


@pytest.mark.parametrize("shape", [(4, 3, 8, 8), (1, 4, 3, 8, 8)])
def test_preprocessor_accepts_mmaction2_batches(shape: tuple[int, ...]) -> None:
    clips = [torch.full(shape, value, dtype=torch.uint8) for value in (1, 2)]
    out = ClipPreprocessor()({"inputs": clips, "data_samples": None})
    assert out["inputs"].shape == (2, 4, 3, 8, 8) and out["inputs"][1].unique().tolist() == [2]


@pytest.mark.gpu
def test_preprocessor_moves_to_the_device(videos: VideoSet) -> None:
    data = dataset(videos)
    out = ClipPreprocessor().cuda()(collate([data[0]]))
    assert out["inputs"]["glance"].is_cuda and out["inputs"]["glance"].dtype == torch.uint8


def test_entry_without_known_length(videos: VideoSet, tmp_path: Path) -> None:
    unchecked = open_dataset(f"csv:{videos.data_root}/labels.csv", data_root=tmp_path, size="tiny", train="set=1",
                             test="set=2", check=False)
    assert unchecked.splits["test"][0].frames is None
    item = ClipDataset(unchecked, "test", [ClipRequest(3)], train=False, seed=0)[0]
    assert item["data_samples"].frame_indices == {"frames": [1, 4, 7]}


def labelled(videos: VideoSet, labels: tuple[int, ...]) -> VideoSet:
    """The set with these labels on every video."""
    return replace(
        videos, splits={name: tuple(replace(e, labels=labels) for e in split) for name, split in videos.splits.items()}
    )


def test_one_of_several_labels_is_drawn_to_train_on(videos: VideoSet) -> None:
    """Keyed as all else, and without a trace in the frames; all labels stay with the sample."""
    single, double = dataset(labelled(videos, (1,))), dataset(labelled(videos, (1, 4)))
    seen = []
    for epoch in range(8):
        single.set_epoch(epoch)
        double.set_epoch(epoch)
        item = double[0]
        assert equal(item, single[0])
        label = item["data_samples"].gt_label.tolist()
        assert sorted(label) == [1, 4] and label == double[0]["data_samples"].gt_label.tolist()
        seen.append(label[0])
    assert set(seen) == {1, 4}
    assert dataset(labelled(videos, (1, 4)), "test", train=False)[0]["data_samples"].gt_label.tolist() == [1, 4]


def test_of_two_labels_the_smaller_is_drawn_twice_as_often() -> None:
    """The authors' readers draw 2/3 and 1/3 for two, and any alike for three."""
    rng = np.random.default_rng(0)
    two = [trained_first((3, 9), rng)[0] for _ in range(6000)]
    assert two.count(3) / 6000 == pytest.approx(2 / 3, abs=0.02)
    three = [trained_first((3, 5, 9), rng)[0] for _ in range(6000)]
    assert [three.count(n) / 6000 for n in (3, 5, 9)] == pytest.approx([1 / 3] * 3, abs=0.02)


def stored(videos: VideoSet, split: str) -> np.ndarray:
    """The first video's frame 2 as its file holds it."""
    return decode(videos.splits[split][0].path, [2])[0]


def test_authors_pipeline_is_pils(videos: VideoSet) -> None:
    """Test frames: torchvision's Resize and CenterCrop on PIL images; the frame is 120 x 160."""
    authors = replace(videos, card=replace(videos.card, pipeline="authors"))
    item = dataset(authors, "test", (ClipRequest(9),), train=False)[0]
    reference = torchvision_transforms.Compose(
        [torchvision_transforms.Resize(128), torchvision_transforms.CenterCrop(112)]
    )(Image.fromarray(stored(authors, "test")))
    (clip,) = item["inputs"].values()
    assert torch.equal(clip[2], torch.from_numpy(np.asarray(reference)).permute(2, 0, 1))


def test_authors_pipeline_crops_training_frames_as_stored(videos: VideoSet, monkeypatch: pytest.MonkeyPatch) -> None:
    authors = replace(videos, card=replace(videos.card, pipeline="authors", flip=False))
    drawn = []
    draw = ClipDataset._draw
    monkeypatch.setattr(ClipDataset, "_draw", lambda *args: drawn.append(draw(*args)) or drawn[-1])
    (clip,) = dataset(authors, "train", (ClipRequest(9),))[0]["inputs"].values()
    top, left, height, width = drawn[0].box
    assert height in {112, 105, 90, 79} | {120}, "sizes follow from the stored frame's shorter side, 120"
    crop = Image.fromarray(stored(authors, "train")).crop((left, top, left + width, top + height))
    reference = np.asarray(crop.resize((112, 112), Image.Resampling.BILINEAR))
    assert torch.equal(clip[2], torch.from_numpy(reference.copy()).permute(2, 0, 1))


def test_pipelines_are_told_apart(videos: VideoSet, tmp_path: Path) -> None:
    folder = videos.splits["train"][0].path.parent
    how = {"data_root": tmp_path, "size": "tiny", "train": "set=1", "test": "set=2", "pipeline": "authors"}
    authors = open_dataset(f"csv:{folder / 'labels.csv'}", **how)
    assert authors.card.pipeline == "authors" and authors.fingerprint != videos.fingerprint
    with pytest.raises(UsageError, match="protocol.pipeline=authors is for real videos; glyphs"):
        open_dataset("glyphs", data_root=tmp_path, size="tiny", pipeline="authors")
