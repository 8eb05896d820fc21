"""AdaFocus V2 (CVPR 2022): a light network glances at each frame and says where a deep one looks closely.

The patch is cut out by bilinear sampling, so the policy learns by back-propagation; V2+ lets easy videos
leave before all frames are seen, and here they really do: the batch shrinks.

    bench.py run --methods adafocus-v2,random-patch,centre-patch --datasets glyphs

Shapes: B videos, T frames, N = B * T, D features, C classes, K exits, P the patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from adafocus.glance_and_focus import GlanceAndFocus
from adafocus.order import frame_order
from adafocus.policy import PatchPolicy, scattered
from adafocus.settings import (
    FULL_SIZE,
    Exits,
    FrameHeads,
    Networks,
    PatchLearning,
    Placed,
    PolicyWidths,
    StepClassifier,
    tiny_networks,
)
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Positive
from harness.contract.recognizer import Clips
from harness.layers.backbones import build_backbone, published
from harness.layers.crop import clip_patch_gradients, crop, crop_boxes
from harness.layers.losses import every_step
from harness.layers.running_max import RunningMaxClassifier

from mmaction.registry import MODELS

CARD = {
    "name": "adafocus-v2",
    "class": "AdaFocusV2",
    "title": "AdaFocus V2",
    "paper": "AdaFocus V2: End-to-End Training of Spatial Dynamic Networks for Video Recognition (arXiv 2112.14238)",
    "year": 2022,
    "adapts": ["space", "sample"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/AdaFocusV2",
    "authors": "adafocus.authors.v2",
    "summary": "A patch per frame, placed by a recurrent policy that learns through bilinear sampling; early exits",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "exit": "test"},
    "settings": {},
    "variants": {
        "random-patch": {
            "title": "Random patch",
            "adapts": [],
            "fidelity": "R",
            "summary": "AdaFocus V2's networks with patches at random places, trained so",
            "knobs": {"patch_size": "train"},
            "settings": {"patch_policy": "random", "exit_every": 0},
        },
        "centre-patch": {
            "title": "Centre patch",
            "adapts": [],
            "fidelity": "R",
            "summary": "AdaFocus V2's networks with the patch in the middle, trained so",
            "knobs": {"patch_size": "train"},
            "settings": {"patch_policy": "centre", "exit_every": 0},
        },
    },
}

TINY_DEPARTURES = (
    "small networks, one classifier shared by all steps and without MLP (paper: MLP of 4096, one per step)",
    "AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD, cosine, no clipping)",
    "auxiliary loss of the glance network on the clip's mean logits (paper: per frame)",
)
LEARNED_DEPARTURES = (
    "each patch's gradient to the policy is scaled down to the batch's median norm (paper: not clipped)",
    "the policy starts at the frame's centre (paper: random initial weights)",
)


class _State(NamedTuple):
    """What is known of the videos still there."""

    frames: Frames
    places_BT2: Tensor | None
    """Random places in processing order, where they are drawn."""
    policy_BH: Tensor | None
    peak_BH: Tensor | None


@MODELS.register_module()
class AdaFocusV2(GlanceAndFocus):
    """AdaFocus V2 and, at the points of the knob `exit`, V2+.

    Args:
        num_classes: C.
        frames: T.
        patch_size: P in pixels.
        patch_policy: How patches are placed.
        networks: The authors' code resizes glances as `bilinear-corners`.
        policy: Width of the policy's 1x1 convolution, and of its linear layer and GRU.
        learning: How the policy learns.
        classifier: See StepClassifier.
        heads: Both networks also learn to classify frames on their own, through two training-only heads.
        exits: The paper's confidence is `softmax`, the authors' code's `logit`.

    Source: docs/methods/adafocus-v2.md, #early-exits for what only the code says.
    """

    test_settings = ("exit_every", "exit_score")

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 16,
        patch_size: Positive = 128,
        patch_policy: Placed = "learned",
        networks: Networks = Networks(glance_resize="bilinear-corners"),
        policy: PolicyWidths = PolicyWidths(policy_channels=64, policy_hidden=2048),
        learning: PatchLearning = PatchLearning(),
        classifier: StepClassifier = StepClassifier(),
        heads: FrameHeads = FrameHeads(),
        exits: Exits = Exits(order="middle-first"),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        self.frames, self.patch_policy, self.learning, self.heads = frames, patch_policy, learning, heads
        self.exit_score = exits.exit_score
        self.steps = frame_order(exits.order, frames)
        self.register_buffer("order", torch.tensor(self.steps), persistent=False)
        every = exits.exit_every
        self.exit_frames = [*range(every, frames, every), frames] if every else [frames]
        self.exits = len(self.exit_frames) if every else 0

        self.glance = build_backbone(networks.glance)
        self.focus = build_backbone(networks.focus)
        if heads.aux_losses:
            self.glance_head = self.frame_head(self.glance.dim, heads.head_dropout)
            self.focus_head = self.frame_head(self.focus.dim, heads.head_dropout)
        if patch_policy == "learned":
            widths = policy.policy_channels, policy.policy_hidden
            self.policy = PatchPolicy(self.glance.dim, self.map_side, *widths, centred=learning.policy_centred)
        dim = self.glance.dim + self.focus.dim
        self.classifier = RunningMaxClassifier(dim, num_classes, frames, **classifier.options())

    # -- what it says of itself ------------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"frames": 16, "patch_size": 128, **FULL_SIZE}
        return {
            "frames": 8,
            "patch_size": resolution // 2,
            **tiny_networks(resolution),
            "policy_channels": 16,
            "policy_hidden": 64,
            "policy_centred": True,
            "patch_grad_clip": True,
            "classifier_hidden": 0,
            "classifier_shared": True,
            "glance_loss": "video",
            "order": "coarse-to-fine",
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        init = (
            InitFrom(f"pretrained:{self._glance_weights()}", into="glance"),
            InitFrom(f"pretrained:{self.networks.focus}", into="focus"),
        )
        learned = self.patch_policy == "learned"
        if size == "paper":
            halved = ("glance", "glance_head") if self.heads.aux_losses else ("glance",)
            groups = [ParamGroup(halved, lr_mult=0.5), ParamGroup(("classifier",), lr_mult=5.0)]
            groups += [ParamGroup(("policy",), lr_mult=0.1)] if learned else []
            return [
                Stage("main", epochs=50, batch_size=32, lr=0.002, weight_decay=1e-4, groups=tuple(groups), init=init)
            ]
        return [
            tiny_stage(
                "main",
                epochs=12,
                groups=(ParamGroup(("policy",), lr_mult=0.5),) if learned else (),
                init=init,
                departures=TINY_DEPARTURES + (LEARNED_DEPARTURES if learned else ()),
            )
        ]

    def _glance_weights(self) -> str:
        """ImageNet weights of the glance network: a ResNet that glances at 96 px was trained at 96 px."""
        name = self.networks.glance
        return published(name, "tsm" if name == "mobilenet_v2" else str(self.glance_side))

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(self.frames),)

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross entropies at all steps and of both auxiliary heads; see `losses`."""
        frames = self.normalise(self.as_clips(inputs)["frames"][:, self.order])
        random_BT2 = torch.rand(*frames.shape[:2], 2, device=frames.device)
        return self.losses(frames, self.labels(data_samples), random_BT2)

    def losses(self, x_BT3HW: Tensor, target_B: Tensor, random_BT2: Tensor) -> dict[str, Tensor]:
        """Losses of normalised frames in processing order, for given random patches.

        The glance network's loss has weight 1; those of the learned and of the random patches are
        averaged. Gradients reach the policy only through the learned patches' pixels.

        Source: docs/methods/adafocus-v2.md#losses.
        """
        batch, steps = x_BT3HW.shape[:2]
        x_N3HW = x_BT3HW.flatten(0, 1)
        maps, glance_ND = self.see(x_N3HW)
        losses = {}
        if self.heads.aux_losses:
            losses["loss_glance"] = self._glance_loss(glance_ND.unflatten(0, (batch, steps)), target_B)
        passes = self._training_patches(maps.unflatten(0, (batch, steps)), random_BT2)
        for name, actions in passes.items():
            focus_ND = self.look(x_N3HW, actions.flatten(0, 1))
            features = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, (batch, steps))
            losses[f"loss_{name}"] = every_step(self.classifier(features), target_B) / len(passes)
            if self.heads.aux_losses:
                frame_logits = self.focus_head(focus_ND).unflatten(0, (batch, steps))
                losses[f"loss_focus_{name}"] = every_step(frame_logits, target_B) / len(passes)
        return losses

    def _training_patches(self, maps_BTDHW: Tensor, random_BT2: Tensor) -> dict[str, Tensor]:
        """Actions (B, T, 2) of each pass of the focus network."""
        if self.patch_policy == "random":
            return {"random": random_BT2}
        if self.patch_policy == "centre":
            return {"centre": torch.full_like(random_BT2, 0.5)}
        actions, _ = self.policy(maps_BTDHW.detach() if self.learning.stop_gradient else maps_BTDHW)
        if self.learning.patch_grad_clip:
            actions = clip_patch_gradients(actions.flatten(0, 1)).unflatten(0, actions.shape[:2])
        return {"learned": actions, "random": random_BT2} if self.learning.random_pass else {"learned": actions}

    def _glance_loss(self, glance_BTD: Tensor, target_B: Tensor) -> Tensor:
        logits_BTC = self.glance_head(glance_BTD)
        if self.heads.glance_loss == "video":
            return F.cross_entropy(logits_BTC.mean(1), target_B)
        return every_step(logits_BTC, target_B)

    # -- evaluation ------------------------------------------------------------------------------

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> _State:
        frames, places = clips["frames"], None
        if self.patch_policy == "random" and generator is not None:
            drawn = torch.rand(len(frames), self.frames, 2, generator=generator, device=generator.device)
            places = drawn.to(frames.device)
        return _State(frames, places, None, None)

    def segment(self, state: _State, first: int, last: int) -> tuple[_State, Tensor]:
        """Frames up to those of exit `last`, in processing order."""
        done, end = self.exit_frames[first - 1] if first else 0, self.exit_frames[last]
        steps = self.steps[done:end]
        x_BT3HW = state.frames.at(steps)
        x_N3HW = x_BT3HW.flatten(0, 1)
        maps, glance_ND = self.see(x_N3HW)
        policy_BH = None
        if self.patch_policy == "learned":
            actions, policy_BH = self.choose(maps.unflatten(0, x_BT3HW.shape[:2]), state.policy_BH)
        elif self.patch_policy == "centre":
            actions = torch.full((*x_BT3HW.shape[:2], 2), 0.5, device=x_BT3HW.device)
        else:
            actions = scattered(x_BT3HW) if state.places_BT2 is None else state.places_BT2[:, done:end]
        focus_ND = self.look(x_N3HW, actions.flatten(0, 1))
        features = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, x_BT3HW.shape[:2])
        peaks_BTH = self.remember(features, state.peak_BH)
        if self.training_parts:
            self._unneeded(glance_ND, focus_ND, peaks_BTH, done)
        self.note_boxes("focus", steps, lambda: crop_boxes(actions, self.patch_size, self.resolution))
        logits = self.conclude(peaks_BTH[:, -1], step=end - 1)
        return state._replace(policy_BH=policy_BH, peak_BH=peaks_BTH[:, -1]), logits

    def _unneeded(self, glance_ND: Tensor, focus_ND: Tensor, peaks_BTH: Tensor, done: int) -> None:
        """What only the losses need: the auxiliary heads, and the heads of all steps but the last."""
        if self.heads.aux_losses:
            self.glance_aux(glance_ND, training_only=True)
            self.focus_aux(focus_ND, training_only=True)
        if len(self.classifier.heads) > 1:
            for step, peak_BH in enumerate(peaks_BTH[:, :-1].unbind(1), done):
                self.conclude(peak_BH, step=step, training_only=True)

    @component("policy", steps=True)
    def choose(self, maps_BTDHW: Tensor, state_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Places (B, T, 2), and the policy's state afterwards."""
        return self.policy(maps_BTDHW, state_BH)

    @component("focus", variant=lambda model: model.networks.focus, side=lambda model: model.patch_size)
    def look(self, x_N3HW: Tensor, actions_N2: Tensor) -> Tensor:
        """Vectors (N, D) of the patches at these places."""
        x_N3HW = self.normalise(x_N3HW)
        return self.focus(crop(x_N3HW, actions_N2.to(x_N3HW.dtype), self.patch_size))

    @component("classifier", steps=True)
    def remember(self, features_BTD: Tensor, peak_BH: Tensor | None) -> Tensor:
        """Running maxima (B, T, H)."""
        return self.classifier.accumulate(features_BTD, peak_BH)

    @component("head", fast=False)
    def conclude(self, peak_BH: Tensor, *, step: int) -> Tensor:
        """Logits (B, C) after a step."""
        return self.classifier.classify(peak_BH[:, None], step)[:, 0]
