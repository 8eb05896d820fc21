"""Patches: closed forms, finite differences, and the clipping of their gradients."""

from __future__ import annotations

import pytest
import torch

from harness.errors import UsageError
from harness.layers.crop import (
    box_stretch,
    clip_patch_gradients,
    crop,
    crop_boxes,
    deformable_boxes,
    deformable_crop,
    hard_crop,
    unstretched,
)


def frames(count: int = 3, height: int = 20, width: int = 20) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("row,column", [(0, 0), (12, 12), (3, 7), (12, 0)])
def test_whole_offset_is_the_slice(row: int, column: int) -> None:
    x = frames(1)
    action = torch.tensor([[row / 12, column / 12]])
    torch.testing.assert_close(crop(x, action, 8), x[:, :, row : row + 8, column : column + 8], atol=1e-5, rtol=0)


def test_fraction_is_bilinear() -> None:
    x = frames(1)
    action = torch.tensor([[2.25 / 12, 5.5 / 12]])
    upper = (x[:, :, 2:10, 5:13] + x[:, :, 2:10, 6:14]) / 2
    lower = (x[:, :, 3:11, 5:13] + x[:, :, 3:11, 6:14]) / 2
    torch.testing.assert_close(crop(x, action, 8), 0.75 * upper + 0.25 * lower, atol=1e-5, rtol=0)


def test_nothing_outside_is_sampled() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.37, 0.91]])
    patches = crop(torch.ones(5, 3, 20, 20), corners, 8)
    torch.testing.assert_close(patches, torch.ones_like(patches), atol=1e-5, rtol=0)


def test_sides_may_differ() -> None:
    x = frames(1, 20, 30)
    torch.testing.assert_close(crop(x, torch.tensor([[0.5, 1.0]]), 8), x[:, :, 6:14, 22:30], atol=1e-5, rtol=0)


def test_gradient_of_a_ramp() -> None:
    """On a frame that rises by 2 per row and 3 per column, dI/da is (side - P) times the slope."""
    rows = torch.arange(20.0)
    x = (2 * rows[:, None] + 3 * rows[None, :]).expand(1, 3, 20, 20)
    action = torch.tensor([[0.3, 0.6]], requires_grad=True)
    crop(x, action, 8).mean().backward()
    torch.testing.assert_close(action.grad, torch.tensor([[24.0, 36.0]]), atol=1e-3, rtol=0)


def test_gradient_against_finite_differences() -> None:
    x = frames(2).double()
    action = torch.tensor([[0.31, 0.62], [0.77, 0.18]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: crop(x, a, 8).square().mean((1, 2, 3)), action, eps=1e-7, atol=1e-5)


def test_precision_is_kept() -> None:
    assert crop(frames().double(), torch.full((3, 2), 0.5).double(), 8).dtype == torch.float64
    assert crop(frames().half(), torch.full((3, 2), 0.5), 8).dtype == torch.float16


def test_hard_crop_floors() -> None:
    x = (frames() * 50).to(torch.uint8)
    actions = torch.tensor([[0.0, 1.0], [0.99, 0.5], [0.26, 0.24]])
    for patch, frame, (top, left) in zip(hard_crop(x, actions, 8), x, [(0, 12), (11, 6), (3, 2)], strict=True):
        assert torch.equal(patch, frame[:, top : top + 8, left : left + 8])


def test_boxes() -> None:
    box = crop_boxes(torch.tensor([[[0.5, 1.0]]]), 8, 20)
    torch.testing.assert_close(box, torch.tensor([[[0.3, 0.6, 0.4, 0.4]]]))


@pytest.mark.parametrize("cut", [crop, hard_crop])
def test_too_large_a_patch_is_refused(cut) -> None:
    with pytest.raises(UsageError, match="patch_size <= 20"):
        cut(frames(1), torch.zeros(1, 2), 21)


def test_gradients_are_clipped_to_the_median_norm() -> None:
    actions = torch.zeros(3, 2, requires_grad=True)
    weight = torch.tensor([[3.0, 4.0], [0.6, 0.8], [30.0, 40.0]])
    (clip_patch_gradients(actions * 1.0) * weight).sum().backward()
    expected = torch.tensor([[3.0, 4.0], [0.6, 0.8], [3.0, 4.0]])
    torch.testing.assert_close(actions.grad, expected)


def test_no_gradient_no_hook() -> None:
    actions = torch.zeros(3, 2)
    assert clip_patch_gradients(actions) is actions


# -- boxes of any size ---------------------------------------------------------------------------

STRETCH = box_stretch(8, 6, 20)


def places(*actions: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(actions)


def test_unstretched_box_is_the_plain_crop() -> None:
    x, at = frames(2), torch.tensor([[0.3, 0.8], [1.0, 0.0]])
    actions = torch.cat((at, torch.full_like(at, unstretched(STRETCH))), dim=1)
    torch.testing.assert_close(deformable_crop(x, actions, 8, STRETCH), crop(x, at, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch", [64, 96, 128, 160, 224])
def test_unstretched_is_the_authors_constant(patch: int) -> None:
    assert unstretched(box_stretch(patch, 96, 224)) == pytest.approx((patch - 96) / 128)


def test_no_box_is_the_patch_where_all_are_the_whole_frame() -> None:
    assert unstretched(box_stretch(16, 32, 32)) == 0


@pytest.mark.parametrize("patch", [4, 6, 20])
def test_patches_of_any_size_are_cut_out_exactly(patch: int) -> None:
    """Smaller than the smallest box of 6, as large, and the whole frame: no resampling, and the box says so."""
    x, at, stretch = frames(2), torch.tensor([[0.3, 0.8], [1.0, 0.0]]), box_stretch(patch, 6, 20)
    actions = torch.cat((at, torch.full_like(at, unstretched(stretch))), dim=1)
    torch.testing.assert_close(deformable_crop(x, actions, patch, stretch), crop(x, at, patch), atol=1e-5, rtol=0)
    torch.testing.assert_close(deformable_boxes(actions, stretch), crop_boxes(at, patch, 20))


def test_whole_frame_halved() -> None:
    """s = 1 from 16 to 8 pixels: each output pixel lies between two rows and two columns."""
    x = frames(1, 16, 16)
    found = deformable_crop(x, places((0.7, 0.2, 1, 1)), 8, box_stretch(8, 6, 16))
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(x, 2), atol=1e-5, rtol=0)


def test_axes_are_apart() -> None:
    """On ramps the patch shows where its pixels were taken: y1 + (i + 0.5) r - 0.5."""
    rows = torch.arange(20.0)
    x = torch.stack((rows[:, None].expand(20, 20), rows[None, :].expand(20, 20)))[None]
    patch = deformable_crop(x, places((0.5, 0.25, 0.0, 0.5)), 8, STRETCH)[0]
    steps = torch.arange(8) + 0.5
    torch.testing.assert_close(patch[0, :, 0], 0.5 * (20 - 6) + steps * 6 / 8 - 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(patch[1, 0], 0.25 * (20 - 13) + steps * 13 / 8 - 0.5, atol=1e-4, rtol=0)


def test_feature_maps_are_cut_alike() -> None:
    """4 of 7 cells at s = 1 of the published setting are the whole map; the middle cells at s = 0 are not."""
    stretch = box_stretch(128, 96, 224)
    ramp = torch.arange(7.0)[:, None].expand(1, 1, 7, 7)
    whole = deformable_crop(ramp, places((0.1, 0.9, 1, 1)), 4, stretch)[0, 0, :, 0]
    torch.testing.assert_close(whole, (torch.arange(4) + 0.5) * 1.75 - 0.5, atol=1e-5, rtol=0)
    small = deformable_crop(ramp, places((0.5, 0.5, 0, 0)), 4, stretch)[0, 0, :, 0]
    torch.testing.assert_close(small, 2 + (torch.arange(4) + 0.5) * 0.75 - 0.5, atol=1e-5, rtol=0)


def test_no_box_samples_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    actions = torch.cat((torch.rand(50, 4, generator=generator), torch.randint(0, 2, (50, 4), generator=generator)))
    patches = deformable_crop(torch.ones(100, 1, 20, 20), actions, 8, STRETCH)
    inside = patches[:, :, 1:-1, 1:-1]  # a box smaller than the patch takes its border from half a pixel outside
    torch.testing.assert_close(inside, torch.ones_like(inside), atol=1e-5, rtol=0)


def test_deformable_gradients_against_finite_differences() -> None:
    x = frames(2).double()
    actions = torch.tensor(
        [[0.31, 0.62, 0.45, 0.13], [0.77, 0.18, 0.83, 0.61]], dtype=torch.float64, requires_grad=True
    )

    def energy(a: torch.Tensor) -> torch.Tensor:
        return deformable_crop(x, a, 8, STRETCH).square().mean((1, 2, 3))

    assert torch.autograd.gradcheck(energy, actions, eps=1e-7, atol=1e-5)


def test_deformable_boxes() -> None:
    boxes = deformable_boxes(places((0.5, 1.0, 0.0, 1.0)), STRETCH)
    torch.testing.assert_close(boxes, torch.tensor([[0.35, 0.0, 0.3, 1.0]]))


def test_smallest_box_is_checked() -> None:
    with pytest.raises(UsageError, match="smallest_box must be between 1 and the frame's side of 20 px, not 21"):
        box_stretch(8, 21, 20)
