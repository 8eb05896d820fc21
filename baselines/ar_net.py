"""AR-Net: a small recurrent policy picks a resolution (with its own network) for each frame, or skips frames.

Its decisions are executed here: the policy looks at all frames at once, a skipped frame costs nothing more, and any
other goes through the one network that was chosen for it. The authors' code computes everything and subtracts on
paper (their issue 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, OperatingPoint, Stage, frame_points, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Dropout, Positive, Share, Weight
from harness.contract.recognizer import Clips, EfficientRecognizer
from harness.errors import UsageError
from harness.layers.backbones import build_backbone
from harness.layers.gumbel import gumbel_noise, straight_through_gumbel
from harness.layers.init import normal_linear, tsn_groups
from harness.layers.resize import ResizeMode, resize, share_of
from harness.measure.counter import MacMeter

from mmaction.registry import MODELS

CARD = {
    "name": "ar-net",
    "class": "ARNet",
    "title": "AR-Net",
    "paper": "AR-Net: Adaptive Frame Resolution for Efficient Action Recognition (ECCV 2020)",
    "year": 2020,
    "adapts": ["resolution", "time"],
    "fidelity": "A",
    "source": "docs/methods/ar-net.md; github.com/mengyuest/AR-Net",
    "summary": "per frame: one of three resolutions, the policy's own features, or a skip of 1, 2 or 4 frames",
    "knobs": {"frames": "test", "cost_weight": "train"},
    "version": 2,
}

SKIPS = (1, 2, 4)
"""Frames dropped by each skip action, the current one included."""
TAU = 5.0
"""Gumbel temperature at the first epoch."""
TAU_DECAY = 2.25
"""ln of the fall of the temperature over a stage: the paper's 0.045 per epoch times 50 epochs."""
DEAREST = 4.11
"""Cost of the dearest path in the loss: GFLOPs of ResNet-50 at 224 px, which the paper's weights suit."""


class _State(NamedTuple):
    """Recurrent state of the policy and where each video's skip window stands."""

    hidden: Tensor
    """(B, H)."""
    cell: Tensor
    """(B, H)."""
    waiting: Tensor
    """Frames still to be skipped (B,), int64."""


@MODELS.register_module()
class ARNet(EfficientRecognizer):
    """Policy (small network, LSTM, heads) beside one network per resolution.

    The K = P + 1 + 3 actions per frame: path 0..P-1 (dearest first), the policy's own recurrent
    features, skip 1, 2 or 4 frames. The video's logits are the mean over its frames that are not skipped
    (zeros where all are).

    One departure from the authors' code: inside a skip window they restore the LSTM's hidden but not its
    cell state, so the cell goes on reading skipped frames. Here both states rest, in training and evaluation.

    Args:
        num_classes: C.
        backbones: Names of the paths' networks, dearest first.
        shares: Side of each path's input as a share of `resolution`.
        policy: Name of the policy's network.
        policy_share: Side of its input as a share of `resolution`.
        hidden: Width of the LSTM.
        frames: T in training and at the default point.
        resize: How frames are made smaller; the authors take the nearest pixel of the normalised frame.
        dropout: Probability before each classifier.
        accuracy_weight, cost_weight, uniform_weight: Weights of the loss terms: cross entropy; usage x
            cost; and, within the cost term, the L2 distance of the action usage from uniform.
        test_frames: Numbers of frames of the `frames` knob.
        kwargs: resolution, mean, std, data_preprocessor (EfficientRecognizer).
    """

    test_settings = ("test_frames",)

    def __init__(
        self,
        num_classes: int,
        *,
        backbones: Sequence[str] = ("resnet50", "resnet34", "resnet18"),
        shares: Sequence[Share] = (1.0, 0.75, 0.5),
        policy: str = "mobilenet_v2",
        policy_share: Share = 0.375,
        hidden: Positive = 512,
        frames: Positive = 16,
        resize: ResizeMode = "nearest",
        dropout: Dropout = 0.5,
        accuracy_weight: Weight = 0.9,
        cost_weight: Weight = 0.1,
        uniform_weight: Weight = 3.0,
        test_frames: Sequence[Positive] = (4, 8, 16, 25, 32),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if len(backbones) != len(shares):
            raise UsageError(f"ar-net: {len(backbones)} backbones but {len(shares)} shares")
        self.backbone_names = tuple(backbones)
        self.shares = tuple(shares)
        self.sides = tuple(share_of(self.resolution, share) for share in shares)
        self.policy_side = share_of(self.resolution, policy_share, least=1)
        self.policy_name = policy
        self.frames = frames
        self.resize = resize
        self.accuracy_weight, self.cost_weight, self.uniform_weight = accuracy_weight, cost_weight, uniform_weight
        self.dropout_probability = dropout
        self.test_frames = tuple(test_frames)
        self.actions = len(self.sides) + 1 + len(SKIPS)
        self.own = len(self.sides)
        """Index of the action that uses the policy's features; skips come after it."""
        lengths = torch.zeros(self.actions, dtype=torch.int64)
        lengths[-len(SKIPS) :] = torch.tensor(SKIPS)
        self.register_buffer("skip_lengths", lengths, persistent=False)
        self.policy = _Policy(policy, hidden, self.actions, num_classes, dropout)
        self.paths = nn.ModuleList(_Path(name, num_classes, dropout) for name in backbones)

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "tiny":
            return {
                "backbones": ["restiny", "restiny", "restiny"],
                "policy": "mbtiny",
                "policy_share": 0.25,
                "hidden": 64,
                "frames": 8,
                "resize": "area",
                "dropout": 0.2,
                "test_frames": [2, 4, 8, 16],
            }
        return {}

    # -- training --------------------------------------------------------------------------------

    def recipe(self, size: str) -> Sequence[Stage]:
        """The paper's order: each network alone as TSN, then all together, then with the policy frozen."""
        start = (
            *(self._path_init(index) for index in range(len(self.paths))),
            InitFrom(f"pretrained:{self.policy_name}", into="policy.backbone"),
        )
        return self._tiny(start) if size == "tiny" else self._paper(start)

    def _path_init(self, index: int) -> InitFrom:
        settings: dict[str, Any] = {
            "backbone": self.backbone_names[index],
            "frames": self.frames,
            "dropout": self.dropout_probability,
        }
        if self.shares[index] != 1:
            settings |= {"share": self.shares[index], "resize": self.resize}
        return InitFrom("method:tsn", into=f"paths.{index}", settings=settings)

    def _tiny(self, start: tuple[InitFrom, ...]) -> list[Stage]:
        return [
            tiny_stage(
                "joint",
                epochs=8,
                trained=("policy",),
                init=start,
                departures=(
                    "AdamW and a one-cycle schedule in place of SGD",
                    "the joint stage trains the policy only; the paths stay as TSN trained them",
                ),
            ),
            tiny_stage(
                "finetune",
                epochs=1,
                lr=5e-4,
                trained=("paths",),
                init=(InitFrom("stage:joint"),),
                settings={"tau": 0.6309},
                departures=("AdamW and a one-cycle schedule in place of SGD",),
            ),
        ]

    def _paper(self, start: tuple[InitFrom, ...]) -> list[Stage]:
        common: dict[str, Any] = {"weight_decay": 1e-4, "schedule": "constant", "clip_grad": 20.0}
        common["groups"] = tsn_groups(self)
        return [
            Stage(
                "joint",
                epochs=50,
                batch_size=48,
                lr=1e-3,
                **common,
                init=start,
                departures=("the paths start from the TSN baseline's recipe, not from 10 epochs at rate 0.02",),
            ),
            Stage(
                "finetune",
                epochs=50,
                batch_size=48,
                lr=5e-4,
                **common,
                trained=("paths",),
                init=(InitFrom("stage:joint"),),
                settings={"tau": 0.6309},
            ),
        ]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(point.get("frames", self.frames)),)

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        return frame_points(self.frames, self.test_frames)

    @property
    def tau(self) -> float:
        """Gumbel temperature of this epoch; a stage may set where it starts."""
        start = self.stage.settings.get("tau", TAU) if self.stage is not None else TAU
        return start * math.exp(-TAU_DECAY * self.progress)

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross entropy, expected cost and distance of the action usage from uniform (docs/methods/ar-net.md#losses).

        All networks run on all frames, as in the paper: the gradient of a decision needs them.
        """
        clip = self.as_clips(inputs)["frames"]
        frames = self.normalise(clip.flatten(0, 1))
        decisions_BTK, own_BTC = self._soft_decisions(frames, *clip.shape[:2])
        logits = [path(resize(frames, side, self.resize)) for path, side in zip(self.paths, self.sides, strict=True)]
        logits_BTKC = torch.stack([*(x.unflatten(0, clip.shape[:2]) for x in logits), own_BTC], 2)
        used_BTK = decisions_BTK[..., : self.own + 1]
        video = (used_BTK.unsqueeze(-1) * logits_BTKC).sum((1, 2)) / used_BTK.sum((1, 2)).clamp_min(1).unsqueeze(-1)
        usage = decisions_BTK.mean((0, 1))
        losses = {"loss_cls": self.accuracy_weight * cross_entropy(video, self.labels(data_samples))}
        if any(p.requires_grad for p in self.policy.parameters()):
            uniform = torch.linalg.vector_norm(usage - usage.mean())
            losses["loss_cost"] = self.cost_weight * (usage * usage.new_tensor(self._prices)).sum()
            losses["loss_uniform"] = self.cost_weight * self.uniform_weight * uniform
        skipped = usage[self.own + 1 :].sum()
        return losses | {"skipped": skipped.detach(), "dearest": usage[0].detach()}

    def _soft_decisions(self, frames: Tensor, videos: int, length: int) -> tuple[Tensor, Tensor]:
        """Straight-through decisions (B, T, K) and the policy's own logits (B, T, C), with skip windows."""
        small = self.policy.backbone(resize(frames, self.policy_side, self.resize))
        features = self.policy.dropout(small).unflatten(0, (videos, length))
        state = self._start(features[:, 0])
        decision = features.new_zeros(videos, self.actions)
        decisions, own = [], []
        for step in range(length):
            hidden, cell = self.policy.lstm(features[:, step], (state.hidden, state.cell))
            fresh = straight_through_gumbel(self.policy.log_probabilities(hidden), self.tau)
            resting = (state.waiting > 0).unsqueeze(1)
            decision = torch.where(resting, decision, fresh)
            hidden = torch.where(resting, state.hidden, hidden)
            cell = torch.where(resting, state.cell, cell)
            state = _State(hidden, cell, self._advance(state.waiting, decision.argmax(1)))
            decisions.append(decision)
            own.append(self.policy.fc(hidden))
        return torch.stack(decisions, 1), torch.stack(own, 1)

    @cached_property
    def _prices(self) -> list[float]:
        """Cost of each action in the loss: the paths' MACs, scaled so that the dearest costs `DEAREST`."""
        macs = []
        for name, side in zip(self.backbone_names, self.sides, strict=True):
            with torch.device("meta"), torch.no_grad(), MacMeter() as meter:
                build_backbone(name).eval()(torch.empty(1, 3, side, side))
            macs.append(meter.total)
        return [DEAREST * m / max(macs) for m in macs] + [0.0] * (self.actions - len(macs))

    # -- evaluation ------------------------------------------------------------------------------

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        """Decide on all frames, then run each path once on all frames that chose it.

        With `generator` the decisions are sampled, as in the authors' test script; else the likeliest
        action is taken.
        """
        clip = clips["frames"]
        everything = clip.all()
        features_BTD = self.preview(everything.flatten(0, 1)).unflatten(0, everything.shape[:2])
        noise_BTK = features_BTD.new_zeros(*everything.shape[:2], self.actions)
        if generator is not None:
            noise_BTK = gumbel_noise(noise_BTK, generator)
        actions_BT, hidden_BTH = self.decide(features_BTD, noise_BTK)
        chosen_BT = actions_BT.cpu().numpy()
        seen_BT = (chosen_BT >= 0) & (chosen_BT <= self.own)
        if self.trace is not None:
            self.trace.note_decisions("action", chosen_BT)
            self.trace.frames_seen, self.trace.frames_used = seen_BT, seen_BT.sum(1)
        groups = [np.flatnonzero(chosen_BT == path) for path in range(self.own + 1)]
        places = torch.from_numpy(np.concatenate(groups)).to(clip.device)  # at once: each copy waits for the device
        x_N3HW, hidden_NH = everything.flatten(0, 1), hidden_BTH.flatten(0, 1)
        total = hidden_BTH.new_zeros(len(clip), self.num_classes)
        for path, (group, rows) in enumerate(zip(groups, places.split([len(g) for g in groups]), strict=True)):
            if not len(group):
                continue
            videos = group // clip.steps
            if path == self.own:
                logits = self.classify_own(hidden_NH[rows], videos=videos)
            else:
                logits = self.run_path(x_N3HW[rows], path=path, videos=videos)
            total.index_add_(0, rows // clip.steps, logits.to(total.dtype))
        used = ((actions_BT >= 0) & (actions_BT <= self.own)).sum(1, keepdim=True)
        return total / used.clamp_min(1)

    @component("policy", variant=lambda model: model.policy_name, side=lambda model: model.policy_side)
    def preview(self, x_N3HW: Tensor) -> Tensor:
        """The policy's features (N, D) of frames."""
        return self.policy.backbone(resize(self.normalise(x_N3HW), self.policy_side, self.resize))

    @component("decisions", steps=True)
    def decide(self, features_BTD: Tensor, noise_BTK: Tensor) -> tuple[Tensor, Tensor]:
        """Action of each frame (B, T), -1 inside a skip window, and the LSTM's hidden states (B, T, H)."""
        state = self._start(features_BTD[:, 0])
        actions, states = [], []
        for features, noise in zip(features_BTD.unbind(1), noise_BTK.unbind(1), strict=True):
            hidden, cell = self.policy.lstm(features, (state.hidden, state.cell))
            resting = state.waiting > 0
            action = (self.policy.log_probabilities(hidden) + noise).argmax(-1)
            hidden = torch.where(resting[:, None], state.hidden, hidden)
            cell = torch.where(resting[:, None], state.cell, cell)
            actions.append(torch.where(resting, -1, action))
            states.append(hidden)
            state = _State(hidden, cell, self._advance(state.waiting, action))
        return torch.stack(actions, 1), torch.stack(states, 1)

    @component("own-classifier", fast=False)
    def classify_own(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, C) of the policy's own features."""
        return self.policy.fc(hidden_NH)

    @component(
        "path",
        variant=lambda model, path: f"{model.backbone_names[path]}@{model.sides[path]}",
        side=lambda model, path: model.sides[path],
    )
    def run_path(self, x_N3HW: Tensor, *, path: int) -> Tensor:
        """Logits (N, C) of frames that chose this network."""
        return self.paths[path](resize(self.normalise(x_N3HW), self.sides[path], self.resize))

    def _start(self, like: Tensor) -> _State:
        hidden, cell = like.new_zeros(2, len(like), self.policy.lstm.hidden_size)
        return _State(hidden, cell, torch.zeros(len(like), dtype=torch.int64, device=like.device))

    def _advance(self, waiting: Tensor, action: Tensor) -> Tensor:
        """Frames still to be skipped after this one (B,): a skip starts a window only where none runs."""
        started = (self.skip_lengths[action] - 1).clamp_min(0)
        return torch.where(waiting > 0, waiting - 1, started)


class _Policy(nn.Module):
    """Small network, LSTM over the frames, and its two heads: the action and the class."""

    def __init__(self, name: str, hidden: int, actions: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = build_backbone(name)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTMCell(self.backbone.dim, hidden)
        self.action = normal_linear(hidden, actions)
        self.fc = normal_linear(hidden, num_classes)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """Log-probability of each action (B, K), never below log 1e-8 as in the authors' code."""
        return self.action(hidden).softmax(-1).clamp_min(1e-8).log()


class _Path(nn.Module):
    """A network with its classifier; names as in TSN, whose weights it takes."""

    def __init__(self, name: str, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = build_backbone(name)
        self.dropout = nn.Dropout(dropout)
        self.fc = normal_linear(self.backbone.dim, num_classes)

    def forward(self, frames: Tensor) -> Tensor:
        """Logits (N, C) of normalised frames (N, 3, H, W)."""
        return self.fc(self.dropout(self.backbone(frames)))
