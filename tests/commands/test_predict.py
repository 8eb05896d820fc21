"""`bench.py predict`: what it tells of a video, what it draws, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.commands.arguments import plain_settings
from harness.contract.trace import Trace
from harness.data import encode
from harness.data.decode import decode, probe
from harness.data.encode import write_mp4
from harness.errors import BenchError, CheckpointError, DataError, UsageError
from harness.measure.cost_table import metered
from harness.measure.metrics import softmax
from harness.measure.predict import predict, shown
from harness.measure.prediction import Box, ClassScore, GivenFrame, Prediction
from harness.plan.building import build_recognizer, full_settings
from harness.store import artifacts
from harness.store.records import commit_record
from reports import overlay
from tests.commands.conftest import bench, write_clip
from tests.commands.test_commands import artifact
from tests.reports.conftest import V2, Factory

CLASSES = ("red", "blue", "green")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 24 noisy frames, 96 x 64."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    rng = np.random.default_rng(0)
    write_mp4(path, (rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(24)), 8)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a tiny AdaFocus V2 with drawn weights, as a run on `glyphs` would have left it."""
    return made(tmp_path_factory.mktemp("work") / "artifacts" / "KEY", "adafocus-v2", dataset="glyphs", key="KEY")


def made(folder: Path, method: str, *, classes: int = 10, resolution: int = 64, **description: Any) -> Path:
    """The artifact of a tiny network with drawn weights."""
    settings = {**full_settings(method, "tiny", resolution, {}), "num_classes": classes, "resolution": resolution}
    model = build_recognizer(method, settings, seed=1)
    if method == "adafocus-v2":
        torch.nn.init.normal_(model.policy.fc.weight, std=2.0)  # far from the centre
    common = {"method": method, "stage": "main", "size": "tiny", "settings": settings, "sources": {}}
    artifacts.write(folder, model.state_dict(), common | description)
    return folder


def test_it_agrees_with_the_evaluation_pipeline(clip: Path, checkpoint: Path) -> None:
    found = predict(clip, checkpoint, top=10)
    model = build_recognizer("adafocus-v2", artifacts.located(checkpoint)[1]["settings"]).eval()
    artifacts.load_into(model, artifacts.read_weights(checkpoint / "model.safetensors"))
    frames = decode(clip, found.clips["frames"])[:, 0:64, 16:80]  # glyphs: stored size, centre 64 x 64
    clips = {"frames": torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())[None]}
    trace = Trace(1, details=True)
    with torch.inference_mode():
        logits = model.infer(clips, trace=trace)
    scores = softmax(logits.numpy())[0]
    assert [c.probability for c in found.classes] == pytest.approx(sorted(scores, reverse=True), rel=1e-4)
    assert [c.name for c in found.classes] == [str(i) for i in np.argsort(-scores, kind="stable")]
    assert found.gflops == pytest.approx(metered(model, clips)[1] / 1e9, rel=1e-6)
    assert sum(found.components.values()) == pytest.approx(found.gflops)
    assert list(found.clips["frames"]) == [1, 4, 7, 10, 13, 16, 19, 22]
    assert found.crop == Box(0, 16, 64, 64)
    _, step, _, top, left, height, width = trace.boxes[0]
    assert found.given[step].rank == 1
    assert found.given[step].boxes[0] == Box(64 * top, 16 + 64 * left, 64 * height, 64 * width)
    assert set(found.seconds) == {"decode", "transform", "transfer", "model"}
    assert found.seconds["model"] > 0
    assert found.frames_decoded == 23, "all frames up to the last that is asked for"


def test_a_forced_exit_leaves_frames_out(clip: Path, checkpoint: Path) -> None:
    full = predict(clip, checkpoint)
    early = predict(clip, checkpoint, settings={"exit_at": 2})
    assert early.gflops == pytest.approx(3 / 8 * full.gflops, rel=0.01)
    assert (early.exit_step, early.exits, early.frames_used) == (2, 8, 3)
    assert [f.number for f in sorted(early.given, key=lambda f: f.rank or 99)[:3]] == [13, 4, 19]
    assert sum(f.state == "left out" for f in early.given) == 5
    assert all((f.state == "looked") == bool(f.boxes) for f in early.given)


def test_calibrated_points_come_from_the_records_of_the_checkpoint(clip: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "w" / "artifacts" / "K", "adafocus-v2", dataset="glyphs", key="K")
    own = artifacts.located(folder)[1]["settings"]
    with pytest.raises(UsageError, match="bench.py eval"):
        predict(clip, folder, point="exit@0.5")
    never, at_once = [1e8] * 5 + [-1e8] * 3, [-1e8] * 8
    for key, owner, created, settings in (
        ("a", "K", "2026-01-02", own),
        ("b", "other", "2026-01-03", own),
        ("c", "K", "2026-01-01", own),
        ("d", "K", "2026-01-04", {**own, "exit_score": "logit"}),
    ):
        recorded(tmp_path / "w", key, owner, created, settings, never if key == "a" else at_once)
    recorded(tmp_path / "w", "e", "K", "2026-01-05", own, at_once, budget_unit="ms")
    for name in ("exit@0.50", "exit@0.5"):
        assert predict(clip, folder, point=name).exit_step == 5


def recorded(
    work_dir: Path,
    key: str,
    artifact: str,
    created: str,
    settings: dict[str, Any],
    thresholds: list[float],
    **protocol: Any,
) -> None:
    """An evaluation of `artifact` that found these thresholds for half the cost."""
    fake = replace(V2, settings=settings, curve=[])
    whole = Factory(work_dir.parent / "whole").evaluation(fake)
    result = {k: v for k, v in whole.result.items() if k != "overlay"}
    found = {"name": "exit@0.50", "knob": "exit", "value": 0.5, "budget": 0.5, "settings": {"thresholds": thresholds}}
    changes = {"key": key, "artifact": artifact, "created": created, "points": [{**result["points"][0], **found}]}
    changes["protocol"] = {**result["protocol"], **protocol}
    commit_record(work_dir / "records" / "evaluation" / key, {**result, **changes}, per_video=whole.arrays())


def test_frames_are_prepared_as_in_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_mp4(tmp_path / "a.mp4", (rng.integers(0, 256, (180, 320, 3), dtype=np.uint8) for _ in range(8)), 8)
    plain, authors = (
        predict(tmp_path / "a.mp4", made(tmp_path / name, "tsn", classes=27, resolution=112, **described), top=27)
        for name, described in {"p": {"dataset": "jester"}, "a": {"dataset": "jester", "pipeline": "authors"}}.items()
    )
    assert {c.index: c.probability for c in plain.classes} != {c.index: c.probability for c in authors.classes}
    assert plain.crop.width == pytest.approx(112 * 320 / 228) and authors.crop.width == pytest.approx(112 * 320 / 227)


def test_settings_of_points_are_checked(clip: Path, checkpoint: Path) -> None:
    assert plain_settings("predict", ["exit_at=3"]) == {"exit_at": 3}
    with pytest.raises(UsageError, match="predict trains nothing"):
        plain_settings("predict", ["stage.lr=1"])
    with pytest.raises(UsageError, match="did you mean 'exit_at'"):
        predict(clip, checkpoint, settings={"exitat": 3})
    with pytest.raises(UsageError, match="did you mean 'full'"):
        predict(clip, checkpoint, point="ful")
    with pytest.raises(UsageError, match="give one of them"):
        predict(clip, checkpoint, point="full", settings={"exit_at": 3})


@pytest.mark.parametrize(
    "text", ["exit_at=abc", "exit_at=2.5", "exit_at=none", "exit_at=true", "thresholds=0.5", "thresholds=abcdefgh"]
)
def test_values_of_exits_are_checked(clip: Path, checkpoint: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"exit_at .* there are 8 exits|thresholds .* list of 8 numbers"):
        predict(clip, checkpoint, settings=plain_settings("predict", [text]))


def test_values_of_other_settings_are_checked(clip: Path, tmp_path: Path) -> None:
    folder = made(tmp_path / "t", "tsn", dataset="glyphs")
    for frames in ("abc", 2.5, None, True, 0, -4):
        with pytest.raises(UsageError, match=f"frames={frames!r}: expected"):
            predict(clip, folder, settings={"frames": frames})
    with pytest.raises(UsageError, match="unknown patches 3; known: centre, learned, random"):
        predict(clip, made(tmp_path / "v", "adafocus-v1", dataset="glyphs"), settings={"patches": 3})


def test_videos_that_cannot_be_predicted_are_named(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.mp4: missing"):
        predict(tmp_path / "nowhere.mp4", checkpoint)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4: cannot be decoded"):
        predict(tmp_path / "text.mp4", checkpoint)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(DataError, match="empty file"):
        predict(tmp_path / "empty.mp4", checkpoint)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no frame named"):
        predict(tmp_path / "folder", checkpoint)


def test_short_videos(clip: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_mp4(tmp_path / "two.mp4", (rng.integers(0, 256, (160, 160, 3), dtype=np.uint8) for _ in range(2)), 8)
    found = predict(tmp_path / "two.mp4", made(tmp_path / "a", "tsn"))
    assert found.clips["frames"] == (0, 1, 1, 1, 1, 1, 1, 1)
    assert any("has 2 frames" in note for note in found.notes)
    jester = made(tmp_path / "b", "tsn", classes=27, resolution=112, dataset="jester")
    with pytest.raises(DataError, match="has 2 frames, Jester takes videos of at least 3"):
        predict(tmp_path / "two.mp4", jester)


def test_checkpoints_that_do_not_fit_are_named(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "foreign.pth").write_bytes(b"x")
    with pytest.raises(BenchError, match="bench.py convert"):
        predict(clip, tmp_path / "foreign.pth")
    folder = made(tmp_path / "a", "tsn", dataset="glyphs")
    with pytest.raises(UsageError, match="not the weights file"):
        predict(clip, folder / "other.pth")
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="was changed"):
        predict(clip, folder)
    artifacts.write(tmp_path / "p", {}, {"method": "pretraining", "stage": "stills", "settings": {"num_classes": 4},
                                              "sources": {}})
    with pytest.raises(UsageError, match="holds a backbone"):
        predict(clip, tmp_path / "p")


def test_class_names(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was trained on glyphs"):
        predict(clip, checkpoint, dataset="jester")
    with pytest.raises(UsageError, match="no such file"):
        predict(clip, checkpoint, classes=tmp_path / "nowhere.txt")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    with pytest.raises(UsageError, match="knows 10 classes"):
        predict(clip, checkpoint, classes=tmp_path / "names.txt")
    for content, what in ((b"\xff\xfe\x00", "not text in UTF-8"), (b" \n", "is empty")):
        (tmp_path / "odd.txt").write_bytes(content)
        with pytest.raises(UsageError, match=rf"--classes .*odd\.txt: .*{what}"):
            predict(clip, checkpoint, classes=tmp_path / "odd.txt")
    converted = made(tmp_path / "c", "tsn", classes=3, stage="official")
    unnamed = predict(clip, converted)
    assert unnamed.classes[0].name == f"class {unnamed.classes[0].index}"
    assert any("--classes" in note for note in unnamed.notes)
    with pytest.raises(UsageError, match="takes frames of 64 px"):
        predict(clip, converted, dataset="jester")
    with pytest.raises(UsageError, match="knows 3 classes"):
        predict(clip, converted, dataset="glyphs")
    assert predict(clip, converted, classes=tmp_path / "names.txt").classes[0].name in CLASSES
    gone = {"resolution": 112, "classes": 3, "dataset": "csv:gone.csv"}
    assert predict(clip, made(tmp_path / "k", "tsn", **gone)).classes[0].name.startswith("class ")
    kept = made(tmp_path / "d", "tsn", **gone)
    described = json.loads((kept / "artifact.json").read_text())
    (kept / "artifact.json").write_text(json.dumps({**described, "classes": CLASSES}))
    assert predict(clip, kept).classes[0].name in CLASSES
    (tmp_path / "labels.csv").write_text("path,label,class\na,0,one\nb,1,two\nc,2,three\n")
    again = predict(clip, converted := made(tmp_path / "e", "tsn", **gone), dataset=f"csv:{tmp_path / 'labels.csv'}")
    assert again.classes[0].name in ("one", "two", "three") and converted.name == "e"


def test_frames_of_methods_that_place_no_boxes(clip: Path, tmp_path: Path) -> None:
    whole = predict(clip, made(tmp_path / "t", "tsn", dataset="glyphs"), settings={"frames": 4})
    assert [f.state for f in whole.given] == ["looked"] * 4
    skipping = predict(clip, made(tmp_path / "a", "ar-net", dataset="glyphs"))
    assert sum(f.state == "looked" for f in skipping.given) == skipping.frames_used


def test_frames_of_methods_with_several_clips(clip: Path, tmp_path: Path) -> None:
    early = predict(clip, made(tmp_path / "u", "uni-adafocus", dataset="glyphs"), settings={"exit_at": 0})
    assert [f.number for f in early.given if f.state == "glanced"] == list(early.clips["glance"])
    assert len(early.given) == 24 and all(f.rank is None for f in early.given)
    two = predict(clip, made(tmp_path / "t", "adafocus-v2-tsm", classes=8, dataset="glyphs-motion"))
    assert {f.number for f in two.given} == {n for numbers in two.clips.values() for n in numbers}
    assert all(len(f.boxes) == 1 for f in two.given if f.state == "looked")


def test_wide_videos_get_boxes_in_their_own_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_mp4(tmp_path / "wide.mp4", (rng.integers(0, 256, (256, 512, 3), dtype=np.uint8) for _ in range(8)), 8)
    found = predict(tmp_path / "wide.mp4", made(tmp_path / "a", "tsn", classes=27, resolution=112, dataset="jester"))
    assert found.crop == Box(16, 144, 224, 224)  # resized to 128 x 256, centre 112


def frames_of(count: int, looked: dict[int, int]) -> tuple[GivenFrame, ...]:
    box = Box(8, 16, 32, 32)
    return tuple(
        GivenFrame(3 * i, "looked" if i in looked else "left out", looked.get(i), (box,) if i in looked else ())
        for i in range(count)
    )


def prediction(clip: Path, **changes: Any) -> Prediction:
    looked = {4: 1, 1: 2}
    values: dict[str, Any] = {
        "video": str(clip), "template": "", "frames": 24, "fps": 8.0, "width": 96, "height": 64, "checkpoint": "c",
        "method": "m", "title": "Method", "stage": "main", "point": "exit@0.30", "settings": {},
        "classes": tuple(ClassScore(i, f"<b>class $i$ {i}", p) for i, p in enumerate((0.7, 0.2, 0.1))),
        "gflops": 1.5, "components": {"focus": 1.5},
        "seconds": {"decode": 0.1, "transform": 0.01, "transfer": 0.0, "model": 0.2},
        "frames_decoded": 8, "frames_used": 2.0, "clips": {"frames": tuple(range(0, 24, 3))},
        "given": frames_of(8, looked), "crop": Box(0, 16, 64, 64), "exit_step": 1, "exits": 8, "device": "cpu",
        "threads": 1,
    }  # fmt: skip
    return Prediction(**(values | changes))


def test_the_film_pauses_where_the_method_looked_and_greys_what_it_left_out(clip: Path, tmp_path: Path) -> None:
    found = prediction(clip)
    images = [*overlay.film(found, shown(found, overlay.film_numbers(found)))]
    pauses, end = round(8 * overlay.PAUSE_S), round(8 * overlay.END_S)
    assert len(images) == 22 + 2 * pauses + end
    height = 2 * round(64 * 320 / 96 / 2)
    assert {image.shape for image in images} == {(height + overlay.BAR, 320, 3)}
    scene = [image[:height].astype(int) for image in images]
    assert np.ptp(scene[1][20:40, 5:40], axis=-1).max() == 0, "a frame that was not taken has no colour"
    assert np.ptp(scene[3][20:40, 5:40], axis=-1).max() > 50, "a frame that was looked at has"
    yellow = np.array((0xFF, 0xD2, 0x3F))
    top, left, right = (round(n * 320 / 96) for n in (8, 16, 48))
    assert (scene[3][top + 1, left + 5 : right - 5] == yellow).all()
    exits = [(image[height - 1, 160] == (0xD9, 0x62, 0x2B)).all() for image in scene]
    assert [i for i, marked in enumerate(exits) if marked] == list(range(3, 3 + pauses))


def test_leaving_after_the_glance_is_marked_at_the_last_glanced_frame(clip: Path) -> None:
    glanced = tuple(GivenFrame(n, "glanced" if n in (1, 10, 19) else "left out", None) for n in range(24))
    found = prediction(clip, given=glanced, exit_step=0)
    painter, image = overlay._Painter(found), np.zeros((64, 96, 3), dtype=np.uint8)
    frames = {n: painter.paint(n, image, glanced[n]) for n in (10, 19, 20)}
    marked = [n for n, drawn in frames.items() if (drawn[painter.height - 1, 160] == (0xD9, 0x62, 0x2B)).all()]
    assert marked == [19]
    assert overlay._fate(found, 19, glanced[19]) == "frame 19 · 2.4 s · glanced at · stops here, 1 of 8"
    assert "stops" not in overlay._fate(found, 10, glanced[10]) + overlay._fate(found, 20, glanced[20])
    to_the_end = prediction(clip, given=glanced, exit_step=7)
    assert overlay._exit_number(to_the_end) is None


def test_a_repeated_frame_is_shown_as_the_closest_look_at_it(clip: Path) -> None:
    box, other = Box(8, 16, 32, 32), Box(0, 0, 16, 16)
    repeated = (
        GivenFrame(3, "left out", None), GivenFrame(3, "looked", 2, (box,)), GivenFrame(3, "looked", 1, (other,)),
        GivenFrame(5, "left out", None), GivenFrame(5, "glanced", None), GivenFrame(7, "left out", None),
        GivenFrame(7, "left out", None),
    )  # fmt: skip
    found = prediction(clip, given=repeated, exit_step=None)
    merged = (GivenFrame(3, "looked", 1, (box, other)), GivenFrame(5, "glanced", None), GivenFrame(7, "left out", None))
    assert found.distinct() == merged
    assert "looked   3 3\nglanced  5\nleft out 7" in found.to_text()
    first = next(overlay.film(found, shown(found, [3])))
    height = len(first) - overlay.BAR
    assert np.ptp(first[height // 2 :, 200:].astype(int), axis=-1).max() > 50, "in colour"
    assert (first[round(8 * 320 / 96) + 1, 80:150] == (0xFF, 0xD2, 0x3F)).all(), "with its box"
    assert overlay._fate(found, 3, merged[0]).endswith("look 1 of 2")


def test_the_picture_takes_only_what_it_shows_and_keeps_it_small(clip: Path, tmp_path: Path) -> None:
    asked: list[list[int]] = []
    sizes: list[tuple[int, ...]] = []

    def frames(_: Prediction, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        asked.append(list(numbers))
        return ((n, np.full((480, 720, 3), n, dtype=np.uint8)) for n in numbers)

    def save_film(_: Path, images: Iterable[np.ndarray], __: float) -> None:
        sizes.extend(image.shape for image in images)

    given = tuple(GivenFrame(n, "looked" if n % 10 == 0 else "left out", n // 10 or None) for n in range(112))
    found = prediction(clip, given=given, frames=112, width=720, height=480, exit_step=None)
    with pytest.MonkeyPatch.context() as patch:
        drawn: dict[int, np.ndarray] = {}
        draw = overlay.picture
        patch.setattr(overlay, "picture", lambda p, images: drawn.update(images) or draw(p, images))
        overlay.write(found, tmp_path, frames=frames, save_film=save_film)
    assert len(asked[0]) == overlay.SHOWN and set(range(0, 112, 10)) <= set(asked[0])
    assert {image.shape for image in drawn.values()} == {(213, 320, 3)}
    assert len(sizes) > 112


def test_a_missing_encoder_is_told_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "ENCODER", "libx264-not-there")
    with pytest.raises(DataError, match=r"film\.mp4 cannot be written: .*libx264-not-there.*bench\.py doctor"):
        write_mp4(tmp_path / "film.mp4", [np.zeros((2, 2, 3), dtype=np.uint8)], 8)
    assert not any(tmp_path.iterdir())


def test_pictures_are_written_and_the_video_is_not_overwritten(clip: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    video.write_bytes(clip.read_bytes())
    many = tuple(GivenFrame(i % 24, "looked" if i % 3 else "glanced", None) for i in range(96))
    for changes in ({}, {"given": many, "exit_step": None}, {"exit_step": 7}, {"fps": None, "frames": 24}):
        found = prediction(video, **changes)
        still, film = overlay.write(found, tmp_path, frames=shown, save_film=write_mp4)
        with Image.open(still) as image:
            assert image.width > 1000
        assert probe(film).frames > 24
    assert video.read_bytes() == clip.read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="another --out"):
        overlay.write(found, tmp_path / "file", frames=shown, save_film=write_mp4)


def test_a_folder_of_frames(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    for number, frame in enumerate(decode(clip, range(24)), 1):
        Image.fromarray(frame).save(tmp_path / f"img_{number:05d}.jpg", quality=98)
    found = predict(tmp_path, checkpoint)
    assert found.frames == 24 and found.template == "img_{:05d}.jpg"
    assert [n for n, _ in shown(found, [3, 5])] == [3, 5]


@pytest.mark.timeout(400)
def test_the_command(clips_csv: Path, undisturbed: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", np.random.default_rng(1), (220, 60, 40))
    out = tmp_path / "out"
    done = bench("predict", str(tmp_path / "clip.mp4"), "--checkpoint", str(artifact(undisturbed, "random-patch")),
                 "--out", str(out), "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert {c["name"] for c in found["classes"]} == {"red", "blue"}
    assert found["gflops"] > 0 and len(found["given"]) == 8 and len(found["given"][0]["boxes"]) == 1
    assert [Path(p).name for p in found["files"]] == ["clip-predicted.png", "clip-predicted.mp4"]
    assert all(Path(p).is_file() for p in found["files"])
    done = bench("predict", str(tmp_path / "nowhere.mp4"), "--checkpoint", str(artifact(undisturbed, "tsn")))
    assert done.returncode == 1
    assert "nowhere.mp4: missing" in done.stderr and "Traceback" not in done.stderr
