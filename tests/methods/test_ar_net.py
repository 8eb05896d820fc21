"""AR-Net: decisions executed as taken, equal to what training computes densely, and the loss in closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from baselines.ar_net import ARNet
from harness.contract.declarations import Stage
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.layers import gumbel
from harness.measure.cost_table import metered

from mmaction.structures import ActionDataSample

PATH = {64: 8_503_296 + 960, 48: 4_783_104 + 960, 32: 2_125_824 + 960}
POLICY = 465_920 + 4 * 64 * 128 + 64 * 7
OWN, SKIP1, SKIP2, SKIP4 = 3, 4, 5, 6


class Scrambled(nn.Module):
    """Stands in for the policy's network: features that differ wildly between frames, so that decisions do."""

    def forward(self, frames: Tensor) -> Tensor:
        phase = 40 * frames.mean((2, 3)) @ torch.linspace(1, 2, 3 * 64).view(3, 64)
        return (phase + torch.arange(64.0)).sin()


def build(seed: int = 0, *, scrambled: bool = False) -> ARNet:
    torch.manual_seed(seed)
    recognizer = ARNet(10, resolution=64, **ARNet.settings_for("tiny", 64))
    for module in recognizer.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.0)
    if scrambled:
        recognizer.policy.backbone = Scrambled()  # type: ignore[assignment]
    return recognizer.eval()


def always(recognizer: ARNet, action: int) -> None:
    nn.init.zeros_(recognizer.policy.action.weight)
    recognizer.policy.action.bias.data = nn.functional.one_hot(torch.tensor(action), 7) * 50.0


def clip(videos: int = 6, frames: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    bright = torch.rand(videos, frames, 1, 1, 1, generator=generator)
    return (torch.rand(videos, frames, 3, 64, 64, generator=generator) * bright * 255).to(torch.uint8)


def samples(number: int) -> list[Any]:
    out = []
    for label in range(number):
        sample = ActionDataSample()
        sample.set_gt_label(label)
        out.append(sample)
    return out


@pytest.mark.parametrize(
    ("action", "path"),
    [(0, PATH[64]), (1, PATH[48]), (2, PATH[32]), (OWN, 640), (SKIP1, 0), (SKIP2, 0), (SKIP4, 0)],
)
def test_only_what_is_decided_runs(action: int, path: int) -> None:
    """The cost in closed form: the policy looks at all frames, the chosen path runs, no other does."""
    recognizer = build()
    always(recognizer, action)
    trace, total = metered(recognizer, {"frames": clip(1)})
    assert total == 8 * POLICY + (8 * path if action <= OWN else 0)
    assert trace.frames_used is not None and trace.frames_used.tolist() == [8 if action <= OWN else 0]


def test_all_skipped_gives_zero_logits() -> None:
    recognizer = build()
    always(recognizer, SKIP4)
    with torch.inference_mode():
        assert not recognizer.infer({"frames": clip()}, trace=Trace(6)).any()


def test_infer_equals_dense_training_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, the sparse forward decides and predicts what training computes on all frames."""
    recognizer = build(scrambled=True)
    frames = clip()
    trace = Trace(6, details=True)
    with torch.inference_mode():
        sparse = recognizer.infer({"frames": frames}, trace=trace)
        monkeypatch.setattr(gumbel, "gumbel_noise", lambda like, generator=None: torch.zeros_like(like))
        flat = recognizer.normalise(frames.flatten(0, 1))
        decisions, _ = recognizer._soft_decisions(flat, 6, 8)
        losses = recognizer.loss({"frames": frames}, samples(6))
    taken = carried(trace.decisions["action"])
    assert len(np.unique(taken)) >= 4 and (trace.decisions["action"] == -1).any()  # the test would else be weak
    assert np.array_equal(decisions.argmax(-1).numpy(), taken)
    expected = 0.9 * cross_entropy(sparse, torch.arange(6))
    torch.testing.assert_close(losses["loss_cls"], expected, rtol=1e-4, atol=1e-4)


def carried(actions: np.ndarray) -> np.ndarray:
    """Decisions with each skip window filled by the skip that began it."""
    out = actions.copy()
    for step in range(1, out.shape[1]):
        out[:, step] = np.where(out[:, step] == -1, out[:, step - 1], out[:, step])
    return out


def test_skip_windows() -> None:
    """A skip of s rests for s frames, then a new decision is due; windows never overlap."""
    recognizer = build(scrambled=True)
    trace = Trace(6, details=True)
    with torch.inference_mode():
        recognizer.infer({"frames": clip(frames=16)}, {"frames": 16}, trace=trace)
    for actions in trace.decisions["action"]:
        step = 0
        while step < 16:
            length = {SKIP1: 1, SKIP2: 2, SKIP4: 4}.get(actions[step], 1)
            assert actions[step] >= 0 and (actions[step + 1 : step + length] == -1).all()
            step += length


def test_cost_and_uniform_losses() -> None:
    """With one certain action: its price relative to the dearest path's 4.11, and the distance from uniform use."""
    recognizer = build()
    always(recognizer, 2)
    losses = recognizer.loss({"frames": clip()}, samples(6))
    share = 2_125_824 / 8_503_296
    torch.testing.assert_close(losses["loss_cost"], torch.tensor(0.1 * 4.11 * share))
    distance = math.sqrt((1 - 1 / 7) ** 2 + 6 / 49)
    torch.testing.assert_close(losses["loss_uniform"], torch.tensor(0.1 * 3.0 * distance))
    assert losses["skipped"] == 0


def test_temperature() -> None:
    """The paper's 5 exp(-0.045 epoch) at 50 epochs; the fine-tuning stage starts at 0.6309."""
    recognizer = build()
    recognizer.set_progress(49, 50)
    assert recognizer.tau == pytest.approx(0.551, abs=1e-3)
    recognizer.set_stage(Stage("finetune", 2, 8, 1e-3, trained=("paths",), settings={"tau": 0.6309}))
    recognizer.set_progress(0, 2)
    assert recognizer.tau == 0.6309


def test_sampled_decisions_vary_with_the_seed() -> None:
    recognizer = build()
    nn.init.zeros_(recognizer.policy.action.weight)
    outputs = []
    for seed in (0, 0, 1):
        trace = Trace(6, details=True)
        with torch.inference_mode():
            recognizer.infer({"frames": clip()}, trace=trace, generator=torch.Generator().manual_seed(seed))
        outputs.append(trace.decisions["action"])
    assert np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[0], outputs[2])


def test_takes_the_tsn_of_each_share() -> None:
    """The dearest path's TSN is the `tsn` method's own, with no setting that differs from its defaults."""
    from baselines.tsn import TSN

    joint, finetune = build().recipe("tiny")
    first, *others = [init for init in joint.init if init.source == "method:tsn"]
    assert first.settings.items() <= TSN.settings_for("tiny", 64).items() and first.into == "paths.0"
    assert [init.settings["share"] for init in others] == [0.75, 0.5]
    assert finetune.trained == ("paths",)


def test_needs_a_share_per_backbone() -> None:
    with pytest.raises(UsageError, match="3 backbones but 2 shares"):
        ARNet(10, shares=(1.0, 0.5))
