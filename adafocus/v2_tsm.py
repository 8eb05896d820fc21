"""AdaFocus V2 on TSM (CVPR 2022): temporally shifted networks, one patch place per video.

For data sets where order matters (Something-Something, Jester). A light network glances at 8 frames and
says once where a deep one looks closely, at 12 frames of its own.

    bench.py run --methods adafocus-v2-tsm,tsm-plus,tsm --datasets glyphs-motion

Shapes: B videos, T glance frames, S focus frames, N = B * T or B * S, D features, C classes, P the patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adafocus.clip_nets import TwoHeadNet, stacked
from adafocus.glance_and_focus import ClipGlanceAndFocus
from adafocus.policy import ClipPolicy, scattered
from adafocus.settings import FULL_SIZE, Networks, PatchLearning, PolicyWidths, tiny_networks
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Dropout, Positive
from harness.contract.recognizer import Clips
from harness.layers.backbones import published
from harness.layers.crop import clip_patch_gradients, crop, crop_boxes
from harness.layers.losses import every_step

from mmaction.registry import MODELS

CARD = {
    "name": "adafocus-v2-tsm",
    "class": "AdaFocusV2TSM",
    "title": "AdaFocus V2 on TSM",
    "paper": "AdaFocus V2: End-to-End Training of Spatial Dynamic Networks for Video Recognition (arXiv 2112.14238)",
    "year": 2022,
    "adapts": ["space"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/AdaFocusV2",
    "authors": "adafocus.authors.v2_tsm",
    "summary": "Networks with temporal shift; one patch place per video, learnt through bilinear sampling",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train"},
    "settings": {},
    "variants": {
        "tsm-plus": {
            "title": "TSM+",
            "adapts": [],
            "fidelity": "R",
            "summary": "AdaFocus V2-TSM's two networks on whole frames, 8 + 8, without policy",
            "knobs": {},
            "settings": {"patch_policy": "whole", "focus_frames": 8},
        },
    },
}

TINY_DEPARTURES = (
    "small networks",
    "AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD, cosine, clipping at 20)",
)
PATCH_DEPARTURES = ("8 focus frames (paper: 12)",)
LEARNED_DEPARTURES = (
    "each video's gradient to the policy is scaled down to the batch's median norm (paper: not clipped)",
    "the policy starts at the frame's centre (paper: random initial weights)",
)


@MODELS.register_module()
class AdaFocusV2TSM(ClipGlanceAndFocus):
    """AdaFocus V2 on TSM; with `patch_policy="whole"` TSM+, the ensemble of both networks on whole frames.

    Args:
        num_classes: C.
        frames: T, frames glanced at.
        focus_frames: S, frames looked at closely, sampled on their own.
        patch_size: P in pixels; `whole` takes the frame's side.
        patch_policy: How the patch is placed; `whole` leaves frames uncut and has no policy network.
        networks: See Networks.
        policy: Width of the policy's 1x1 convolution and of its first linear layer, see ClipPolicy.
        learning: How the policy learns.
        dropout: Before the heads.
        aux_loss: Auxiliary losses on the `video`'s mean logits (the code) or per `frame`.
        align_crops: Glance and focus frames share the random crop in training. Off, as in the code: the
            authors crop both clips on their own, so in training the box is off by the crops' difference.

    Source: docs/methods/adafocus-v2.md#on-tsm, docs/data.md#crops for what only the code says.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 8,
        focus_frames: Positive = 12,
        patch_size: Positive = 128,
        patch_policy: Literal["learned", "random", "centre", "whole"] = "learned",
        networks: Networks = Networks(),
        policy: PolicyWidths = PolicyWidths(policy_channels=64),
        learning: PatchLearning = PatchLearning(),
        dropout: Dropout = 0.5,
        aux_loss: Literal["video", "frame"] = "video",
        align_crops: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        if patch_policy == "whole":
            self.patch_size = self.resolution
        self.frames, self.focus_frames = frames, focus_frames
        self.patch_policy, self.learning = patch_policy, learning
        self.aux_loss, self.align_crops = aux_loss, align_crops
        self.glance = TwoHeadNet(networks.glance, num_classes, dropout=dropout)
        self.focus = TwoHeadNet(networks.focus, num_classes, dropout=dropout)
        if patch_policy == "learned":
            widths = policy.policy_channels, policy.policy_hidden
            dim = frames * self.glance.dim
            self.policy = ClipPolicy(dim, self.map_side, *widths, centred=learning.policy_centred)

    # -- what it says of itself ------------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"patch_size": 128, **FULL_SIZE}
        return {
            "focus_frames": 8,
            "patch_size": resolution * 5 // 8,  # one box cannot follow the plate: with half the side nothing is learnt
            **tiny_networks(resolution),
            "policy_channels": 16,
            "policy_hidden": 64,
            "policy_centred": True,
            "patch_grad_clip": True,
            "dropout": 0.2,
            "align_crops": True,
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        init = (
            InitFrom(f"pretrained:{published(self.glance.name, 'tsm')}", into="glance.backbone"),
            InitFrom(f"pretrained:{self.focus.name}", into="focus.backbone"),
        )
        learned = self.patch_policy == "learned"
        if size == "paper":
            groups = [ParamGroup(("glance",), lr_mult=0.5)] + ([ParamGroup(("policy",), lr_mult=0.01)] * learned)
            return [
                Stage(
                    "main",
                    epochs=50,
                    batch_size=32,
                    lr=0.01,
                    weight_decay=5e-4,
                    clip_grad=20.0,
                    groups=tuple(groups),
                    init=init,
                )
            ]
        departures = TINY_DEPARTURES + (PATCH_DEPARTURES if self.patch_policy != "whole" else ())
        return [
            tiny_stage(
                "main",
                epochs=12,
                groups=(ParamGroup(("policy",), lr_mult=0.5),) if learned else (),
                init=init,
                departures=departures + (LEARNED_DEPARTURES if learned else ()),
            )
        ]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        crops: Any = "shared" if self.align_crops else "own"
        return (
            ClipRequest(self.frames, "glance", short="first"),
            ClipRequest(self.focus_frames, "focus", short="first", crop=crops),
        )

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross entropies of both networks' sum and of each one's auxiliary head; see `losses`."""
        clips = self.as_clips(inputs)
        random_B2 = torch.rand(len(clips["glance"]), 2, device=clips["glance"].device)
        return self.losses(clips["glance"], clips["focus"], self.labels(data_samples), random_B2)

    def losses(
        self, glance_BT3HW: Tensor, focus_BS3HW: Tensor, target_B: Tensor, random_B2: Tensor
    ) -> dict[str, Tensor]:
        """Losses of frames for given random patch places.

        The sum's loss trains the two heads alone. The glance network learns from its auxiliary head, which has
        weight 1; the focus network from its own with learned and random patches, half each; the policy from
        the focus network's with learned patches.

        Source: docs/methods/adafocus-v2.md#on-tsm.
        """
        maps_BEHW, vectors_BTD = self.see(glance_BT3HW)
        glance_BC = self.glance_logits(vectors_BTD)
        losses = {"loss_glance": self._auxiliary_loss(self.glance_frame_logits(vectors_BTD), target_B)}
        passes = self._training_patches(maps_BEHW, random_B2)
        for name, actions in passes.items():
            focus_BSD = self.look(focus_BS3HW, actions)
            logits = glance_BC + self.focus_logits(focus_BSD)
            auxiliary = self.focus_frame_logits(focus_BSD)
            losses[f"loss_{name}"] = cross_entropy(logits, target_B) / len(passes)
            losses[f"loss_focus_{name}"] = self._auxiliary_loss(auxiliary, target_B) / len(passes)
        return losses

    def _training_patches(self, maps_BEHW: Tensor, random_B2: Tensor) -> dict[str, Tensor]:
        """Actions (B, 2) of each pass of the focus network."""
        if self.patch_policy == "random":
            return {"random": random_B2}
        if self.patch_policy != "learned":
            return {self.patch_policy: torch.full_like(random_B2, 0.5)}
        actions = self.policy(maps_BEHW.detach() if self.learning.stop_gradient else maps_BEHW)
        if self.learning.patch_grad_clip:
            actions = clip_patch_gradients(actions)
        return {"learned": actions, "random": random_B2} if self.learning.random_pass else {"learned": actions}

    def _auxiliary_loss(self, logits_BTC: Tensor, target_B: Tensor) -> Tensor:
        if self.aux_loss == "video":
            return cross_entropy(logits_BTC.mean(1), target_B)
        return every_step(logits_BTC, target_B)

    # -- evaluation ------------------------------------------------------------------------------

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        maps_BEHW, glance_BTD = self.see(clips["glance"].all())
        focus_BS3HW = clips["focus"].all()
        if self.patch_policy == "learned":
            actions = self.choose(maps_BEHW)
        else:
            actions = self._fixed_patches(focus_BS3HW, generator)
        focus_BSD = self.look(focus_BS3HW, actions)
        if self.patch_policy != "whole":
            shape = (-1, self.focus_frames, -1)
            boxes = partial(crop_boxes, actions, self.patch_size, self.resolution)
            self.note_boxes("focus", range(self.focus_frames), lambda: boxes()[:, None].expand(shape))
        if self.training_parts:
            self.glance_frame_logits(glance_BTD, training_only=True)
            self.focus_frame_logits(focus_BSD, training_only=True)
        return self.glance_logits(glance_BTD) + self.focus_logits(focus_BSD)

    @component("glance", variant=lambda model: model.glance.name, side=lambda model: model.glance_side, steps=True)
    def see(self, clip_BT3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of a clip's frames on top of each other (B, T * D, h, w), and vectors (B, T, D)."""
        maps = self.glance.maps(self.shrink(self.normalise(clip_BT3HW.flatten(0, 1))), self.frames)
        return stacked(maps, self.frames), self.glance.vectors(maps).unflatten(0, clip_BT3HW.shape[:2])

    @component("policy")
    def choose(self, maps_BEHW: Tensor) -> Tensor:
        """Places (B, 2)."""
        return self.policy(maps_BEHW)

    @component("focus", variant=lambda model: model.focus.name, side=lambda model: model.patch_size, steps=True)
    def look(self, clip_BS3HW: Tensor, actions_B2: Tensor) -> Tensor:
        """Vectors (B, S, D) of the same place of all frames of a video."""
        x_N3HW = self.normalise(clip_BS3HW.flatten(0, 1))
        if self.patch_policy != "whole":
            actions = actions_B2.to(x_N3HW.dtype).repeat_interleave(clip_BS3HW.shape[1], 0)
            x_N3HW = crop(x_N3HW, actions, self.patch_size)
        return self.focus.vectors(self.focus.maps(x_N3HW, self.focus_frames)).unflatten(0, clip_BS3HW.shape[:2])

    def _fixed_patches(self, clip_BS3HW: Tensor, generator: torch.Generator | None) -> Tensor:
        batch, device = len(clip_BS3HW), clip_BS3HW.device
        if self.patch_policy != "random":
            return torch.full((batch, 2), 0.5, device=device)
        if generator is None:
            return scattered(clip_BS3HW[:, :1])[:, 0]
        return torch.rand(batch, 2, generator=generator, device=generator.device).to(device)
