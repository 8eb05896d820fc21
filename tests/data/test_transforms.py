"""The spatial pipeline: crop places and sizes in closed form, one draw for all frames of a clip."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from harness.data.cards import CARDS, Geometry, dataset_card
from harness.data.transforms import (
    SpatialDraw,
    apply,
    centre_box,
    colour_table,
    draw_test,
    draw_train,
    fixed_offsets,
    multiscale_box,
    resize_short,
)
from harness.errors import UsageError

PAPER = Geometry(256, 224)


def coordinates(height: int, width: int) -> np.ndarray:
    """A frame whose red is its row and whose green is its column."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0], frame[..., 1] = np.arange(height)[:, None], np.arange(width)
    return frame


def test_resize_short() -> None:
    assert resize_short(coordinates(100, 200), 64).shape == (64, 128, 3)
    assert resize_short(coordinates(200, 100), 64).shape == (128, 64, 3)
    same = coordinates(64, 80)
    assert resize_short(same, 64) is same and resize_short(same, None) is same


def test_centre_and_three_crops() -> None:
    assert centre_box(256, 340, 224) == (16, 58, 224, 224)
    assert [draw_test(PAPER, 256, 340, v, "three-crop").box for v in range(3)] == [
        (16, 0, 224, 224), (16, 58, 224, 224), (16, 116, 224, 224)]
    assert [draw_test(PAPER, 340, 256, v, "three-crop").box[:2] for v in range(3)] == [(0, 16), (58, 16), (116, 16)]
    with pytest.raises(UsageError):
        draw_test(PAPER, 256, 340, 3, "three-crop")


def test_fixed_offsets_are_tsns() -> None:
    w_step, h_step = (340 - 224) // 4, (256 - 168) // 4
    published = {(0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)}
    assert set(fixed_offsets(256, 340, 168, 224)) == {(y * h_step, x * w_step) for x, y in published}


def test_multiscale_sizes() -> None:
    boxes = {multiscale_box(256, 340, 224, np.random.default_rng(s)) for s in range(500)}
    sides = {224, 256, 192, 168}  # 256, 256 * .875 = 224, 256 * .75, 256 * .66
    assert {b[2] for b in boxes} == {b[3] for b in boxes} == sides
    order = sorted(sides)
    assert all(abs(order.index(b[2]) - order.index(b[3])) <= 1 for b in boxes)
    assert all(b[0] + b[2] <= 256 and b[1] + b[3] <= 340 for b in boxes)


def test_apply_crops_flips_and_scales() -> None:
    frames = np.stack([coordinates(100, 120)] * 2)
    clip = apply(SpatialDraw((10, 20, 64, 64), 64), frames)
    assert clip.shape == (2, 3, 64, 64) and clip.dtype == np.uint8 and clip.flags.c_contiguous
    assert (clip[:, 0, :, 0] == np.arange(10, 74)).all() and (clip[:, 1, 0] == np.arange(20, 84)).all()
    assert (apply(SpatialDraw((10, 20, 64, 64), 64, flip=True), frames) == clip[..., ::-1]).all()
    shifted = apply(SpatialDraw((10, 20, 64, 64), 64, shift=(2, -3)), frames)
    assert (shifted == np.roll(clip, (2, -3), axis=(2, 3))).all()
    assert apply(SpatialDraw((10, 20, 64, 64), 64), frames, 32).shape == (2, 3, 32, 32)
    np.testing.assert_allclose(apply(SpatialDraw((10, 20, 64, 64), 64), frames, 32)[0, 0, :, 0],
                               10.5 + 2 * np.arange(32), atol=0.5)


def test_small_frames_are_enlarged_to_the_crop() -> None:
    draw = draw_test(Geometry(None, 64), 48, 80)
    assert draw.box == (0, 16 - 8, 48, 64) or draw.box[2:] == (48, 64)
    assert apply(draw, coordinates(48, 80)[None]).shape == (1, 3, 64, 64)


def test_no_flip_where_direction_is_the_class() -> None:
    for name in ("sthv1", "sthv2", "jester", "glyphs", "glyphs-motion"):
        card = dataset_card(name)
        draws = [draw_train(card, PAPER, 256, 340, np.random.default_rng(s)) for s in range(50)]
        assert not any(d.flip for d in draws), name
    draws = [draw_train(dataset_card("activitynet"), PAPER, 256, 340, np.random.default_rng(s)) for s in range(200)]
    assert 70 < sum(d.flip for d in draws) < 130


def test_shift_family() -> None:
    card = dataset_card("glyphs")
    draws = [draw_train(card, Geometry(None, 64), 64, 64, np.random.default_rng(s)) for s in range(300)]
    assert {d.shift[0] for d in draws} == {d.shift[1] for d in draws} == set(range(-3, 4))
    assert all(d.box == (0, 0, 64, 64) and d.lut is not None for d in draws)
    plain = draw_train(replace(card, jitter=False), Geometry(None, 64), 64, 64, np.random.default_rng(0))
    assert plain.lut is None


def test_colour_table() -> None:
    table = colour_table(np.random.default_rng(1))
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert (np.diff(table.astype(int), axis=0) >= 0).all()
    frames = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    clip = apply(SpatialDraw((0, 0, 8, 8), 8, lut=table), frames)
    for c in range(3):
        assert (clip[0, c] == table[frames[0, ..., c], c]).all()


def test_cards_are_whole() -> None:
    assert set(CARDS) == {"glyphs", "glyphs-motion", "activitynet", "fcvid", "mini-kinetics", "sthv1", "sthv2",
                          "jester", "kinetics400", "diving48"}
    for name, card in CARDS.items():
        assert card.name == name and set(card.geometry) == {"tiny", "paper"} and card.geometry["paper"].crop == 224
        assert card.kind == "embedded" or set(card.splits) == {"train", "test"}
    assert len(CARDS["glyphs-motion"].classes) == 8 and CARDS["glyphs-motion"].classes[3] == "3 then 2"
    with pytest.raises(UsageError, match="did you mean 'glyphs'"):
        dataset_card("glyfs")


def test_cards_are_read_without_heavy_imports() -> None:
    """`bench.py list` reads the cards: neither torch nor the decoders may come with them."""
    import subprocess
    import sys

    code = ("import sys, harness.data.cards as c; assert 'glyphs' in c.dataset_summaries(); "
            "print([m for m in ('torch', 'av', 'cv2', 'numpy', 'mmengine') if m in sys.modules]); "
            "import harness.data.videos, harness.data.render; print('torch' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split("\n")[:2] == ["[]", "False"]
