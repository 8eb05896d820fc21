"""The papers' networks at 224 pixels: every method and variant builds, takes a step of every stage and infers.

A few frames, random weights, noise for videos: nothing here is about accuracy. One model is alive at a time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contract.declarations import EMPTY, Stage
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.registry import method_cards, recognizer_class
from harness.contract.trace import Trace
from harness.plan.building import build_recognizer, constructor_settings, full_settings
from harness.work.optimization import build_optimizer

from mmaction.structures import ActionDataSample

RESOLUTION, CLASSES, VIDEOS = 224, 5, 2
FEW = {"frames": 2, "glance_frames": 2, "focus_frames": 2}
"""Numbers of frames, where a method has such a setting; the papers' are 8 to 32."""
VARIANTS = ("adafocus-v2[glance=resnet50,glance_side=96]",)
"""Networks of the papers that no card names."""
METHODS = sorted([*(name for name, card in method_cards().items() if "paper" in card.sizes), *VARIANTS])


def build(method: str) -> EfficientRecognizer:
    known = constructor_settings(recognizer_class(method))
    few = {name: value for name, value in FEW.items() if name in known}
    settings = full_settings(method, "paper", RESOLUTION, few)
    return build_recognizer(method, {**settings, "num_classes": CLASSES, "resolution": RESOLUTION})


def clips(model: EfficientRecognizer, videos: int, stage: Stage | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    for request in model.clip_requests(EMPTY, stage=stage):
        if request.subset_of is not None:
            found[request.name] = found[request.subset_of][:, request.group // 2 :: request.group]
            continue
        side = request.resolution or RESOLUTION
        shape = (videos, request.frames, 3, side, side)
        found[request.name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return found


def step(model: EfficientRecognizer, stage: Stage) -> set[str]:
    """One training step of a stage as the harness takes it; names of the parameters that moved."""
    model.set_stage(stage)
    model.set_progress(0, stage.epochs)
    model.train()
    optimizer = build_optimizer(model, stage)
    labels: list[Any] = [ActionDataSample().set_gt_label(video % CLASSES) for video in range(VIDEOS)]
    losses = model.loss(clips(model, VIDEOS, stage), labels)
    sum((value.mean() for name, value in losses.items() if "loss" in name), torch.zeros(())).backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in learning.values())
    moved = {name for name, p in learning.items() if p.grad is not None and p.grad.any()}
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in learning.values())
    return moved


@pytest.mark.parametrize("method", METHODS)
def test_full_size(method: str) -> None:
    model = build(method)
    stages = [stage for stage in model.recipe("paper") if stage.method is None]
    for stage in stages:
        moved = step(model, stage)
        for prefix in stage.trained:
            assert any(name.startswith(prefix) for name in moved), f"stage {stage.name} leaves {prefix!r} as it was"
    model.zero_grad(set_to_none=True)
    trace = Trace(1)
    with torch.inference_mode():
        logits = model.eval().infer(clips(model, 1), trace=trace)
    assert logits.shape == (1, CLASSES) and torch.isfinite(logits).all()
    assert trace.counts
