"""AdaFocus V2 (CVPR 2022): a light network glances at each frame and says where a deep one looks closely.

The patch is cut out by bilinear sampling, so the policy learns by back-propagation; V2+ lets easy videos
leave before all frames are seen, and here they really do: the batch shrinks.

    bench.py run --methods adafocus-v2,random-patch,centre-patch --datasets glyphs

Shapes: B videos, T frames, N = B * T, D features, C classes, K exits, P the patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.exits import NEVER, point_thresholds, staying
from harness.contract.groups import Positive
from harness.contract.recognizer import Clips
from harness.contract.trace import Trace
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


@dataclass
class _Memory:
    """What a video carries from step to step; rows are the videos still there."""

    policy_1BH: Tensor | None = None
    peak_BH: Tensor | None = None

    def keep(self, rows: Tensor) -> _Memory:
        policy = None if self.policy_1BH is None else self.policy_1BH[:, rows]
        return _Memory(policy, None if self.peak_BH is None else self.peak_BH[rows])


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
        self.register_buffer("order", torch.tensor(frame_order(exits.order, frames)), persistent=False)
        every = exits.exit_every
        self.exit_ends = [*range(every, frames, every), frames] if every else []
        self.exits = len(self.exit_ends)

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
        maps = self.glance.features(self.shrink(x_N3HW))
        glance_ND = maps.mean((2, 3))
        losses = {}
        if self.heads.aux_losses:
            losses["loss_glance"] = self._glance_loss(glance_ND.unflatten(0, (batch, steps)), target_B)
        passes = self._training_patches(maps.unflatten(0, (batch, steps)), random_BT2)
        for name, actions in passes.items():
            focus_ND = self.focus(crop(x_N3HW, actions.flatten(0, 1), self.patch_size))
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

    def infer(
        self,
        clips: Clips,
        point: Mapping[str, Any] = EMPTY,
        *,
        trace: Trace,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Logits (B, C). `point` may hold `thresholds` (K,), or `exit_at`, the exit forced on every video."""
        frames = clips["frames"]
        random_BT2 = None
        if self.patch_policy == "random" and generator is not None:
            random_BT2 = torch.rand(*frames.shape[:2], 2, generator=generator, device=generator.device)
        thresholds = point_thresholds(point, self.exits)
        if thresholds is None:
            peaks, _ = self._look(frames, 0, self.frames, _Memory(), trace, None, random_BT2)
            return self._last_logits(peaks, trace)
        return self._infer_until_sure(frames, thresholds, trace, random_BT2)

    def infer_exits(self, clips: Clips, *, trace: Trace) -> Tensor:
        """Logits at all exits (B, K, C)."""
        peaks, _ = self._look(clips["frames"], 0, self.frames, _Memory(), trace, None, None)
        with trace.event("head", shape=(self.classifier.width,), rows=self.frames):
            logits_BTC = self.classifier.classify(peaks)
        return logits_BTC[:, [end - 1 for end in self.exit_ends]]

    def _infer_until_sure(
        self, frames: Tensor, thresholds: Sequence[float], trace: Trace, random_BT2: Tensor | None
    ) -> Tensor:
        """Frame by frame, or `exit_every` at a time; videos that are sure leave the batch."""
        result = torch.zeros(len(frames), self.num_classes, device=frames.device, dtype=self.mean.dtype)
        trace.exit_step = np.zeros(len(frames), dtype=np.int64)
        there, memory, start = np.arange(len(frames)), _Memory(), 0
        rows = torch.arange(len(frames), device=frames.device)
        for k, end in enumerate(self.exit_ends):
            trace.exit_step[there] = k
            actions = None if random_BT2 is None else random_BT2[torch.from_numpy(there).to(random_BT2.device)]
            peaks, memory = self._look(frames, start, end, memory, trace, (there, rows), actions)
            last, start = k == self.exits - 1, end
            if thresholds[k] >= NEVER and not last:
                continue  # nobody leaves here, whatever the head says
            with trace.event("head", shape=(self.classifier.width,), videos=there):
                logits = self.classifier.classify(peaks[:, -1:], end - 1)[:, 0]
            result[rows] = logits.to(result.dtype)
            if thresholds[k] <= -NEVER or last:
                break
            stays, staying_rows = staying(logits, thresholds[k], self.exit_score)
            there, rows, memory = there[stays], rows[staying_rows], memory.keep(staying_rows)
            if not len(there):
                break
        trace.frames_used = np.asarray(self.exit_ends, dtype=np.float64)[trace.exit_step]
        return result

    def _look(
        self,
        frames: Tensor,
        start: int,
        end: int,
        memory: _Memory,
        trace: Trace,
        there: tuple[np.ndarray, Tensor] | None,
        random_BT2: Tensor | None,
    ) -> tuple[Tensor, _Memory]:
        """Process the frames at steps start .. end-1 of the videos still there.

        `there` are their rows in the batch, on the host and on the frames' device; None: all.

        Returns the running maxima (B, end - start, H) and the memory afterwards.
        """
        steps = self.order[start:end]
        videos, rows = (None, None) if there is None else there
        count: dict[str, Any] = {"videos": videos, "rows": end - start}
        x_BT3HW = frames[:, steps] if rows is None else frames[rows[:, None], steps]  # copies these frames only
        side = self.glance_side
        with trace.event("glance", shape=(3, side, side), variant=self.networks.glance, **count):
            x_N3HW = self.normalise(x_BT3HW.flatten(0, 1))
            maps = self.glance.features(self.shrink(x_N3HW))
            glance_ND = maps.mean((2, 3))
        if self.patch_policy == "learned":
            with trace.event("policy", shape=maps.shape[1:], **count):
                actions, state = self.policy(maps.unflatten(0, x_BT3HW.shape[:2]), memory.policy_1BH)
        else:
            given = None if random_BT2 is None else random_BT2[:, start:end].to(frames.device)
            actions, state = self._fixed_patches(x_BT3HW, given), None
        with trace.event("focus", shape=(3, self.patch_size, self.patch_size), variant=self.networks.focus, **count):
            focus_ND = self.focus(crop(x_N3HW, actions.flatten(0, 1).to(x_N3HW.dtype), self.patch_size))
        with trace.event("classifier", shape=(self.classifier.dim,), **count):
            features = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, x_BT3HW.shape[:2])
            peaks = self.classifier.accumulate(features, memory.peak_BH)
        if trace.training_parts and self.heads.aux_losses:
            self._auxiliary(glance_ND, focus_ND, trace, count)
        if trace.details:
            boxes = crop_boxes(actions, self.patch_size, self.resolution)
            trace.note_boxes("focus", steps.tolist(), boxes, None if videos is None else videos.tolist())
        return peaks, _Memory(state, peaks[:, -1])

    def _last_logits(self, peaks_BTH: Tensor, trace: Trace) -> Tensor:
        """Logits after the last step; the others' heads run only where training-only parts are counted."""
        if trace.training_parts and len(self.classifier.heads) > 1:
            with trace.event("head", shape=(self.classifier.width,), rows=self.frames - 1, training_only=True):
                self.classifier.classify(peaks_BTH[:, :-1])
        with trace.event("head", shape=(self.classifier.width,)):
            return self.classifier.classify(peaks_BTH[:, -1:], self.frames - 1)[:, 0]

    def _auxiliary(self, glance_ND: Tensor, focus_ND: Tensor, trace: Trace, count: Mapping[str, Any]) -> None:
        with trace.event("glance head", shape=glance_ND.shape[1:], training_only=True, **count):
            self.glance_head(glance_ND)
        with trace.event("focus head", shape=focus_ND.shape[1:], training_only=True, **count):
            self.focus_head(focus_ND)

    def _fixed_patches(self, x_BT3HW: Tensor, random_BT2: Tensor | None) -> Tensor:
        if self.patch_policy == "centre":
            return torch.full((*x_BT3HW.shape[:2], 2), 0.5, device=x_BT3HW.device)
        return scattered(x_BT3HW) if random_BT2 is None else random_BT2
