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
from torch import Tensor, nn
from torch.nn import functional as F

from adafocus.official import converted, family_state, mobilenet, place, resnet, substitute, under
from adafocus.order import frame_order
from adafocus.parity.v2 import v2_outputs
from adafocus.policy import PatchPolicy, scattered
from harness.contract import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.errors import UsageError, unknown
from harness.layers.backbones import build_backbone, published
from harness.layers.crop import check_patch_size, clip_patch_gradients, crop, crop_boxes
from harness.layers.exits import NEVER, point_thresholds, should_exit
from harness.layers.losses import every_step
from harness.layers.resize import resize
from harness.layers.running_max import RunningMaxClassifier
from harness.official import Converted
from harness.parity import ParityCase
from harness.recognizer import Clips, EfficientRecognizer
from harness.trace import Trace

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

POLICIES = ("learned", "random", "centre")

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
class AdaFocusV2(EfficientRecognizer):
    """AdaFocus V2 and, at the points of the knob `exit`, V2+.

    Args:
        num_classes: C.
        frames: T.
        patch_size: P in pixels.
        glance: Backbone that sees whole frames.
        glance_side: Side in pixels at which it sees them; None for full resolution.
        glance_resize: How frames get there, see `resize`; the authors' code takes `bilinear-corners`.
        focus: Backbone that sees the patches.
        patch_policy: `learned`; `random` and `centre` are references without policy network.
        policy_channels, policy_hidden: Width of the policy's 1x1 convolution, and of its linear layer and GRU.
        policy_centred: Start the policy at the frame's centre instead of at random weights.
        stop_gradient: The policy does not train the glance network through its input.
        patch_grad_clip: Scale each patch's gradient down to the batch's median norm.
        random_pass: Train the focus network on random patches too (the paper's diversity augmentation).
        aux_losses: Let both networks also learn to classify frames on their own, through two training-only heads.
        classifier_hidden, classifier_shared, dropout: See RunningMaxClassifier.
        head_dropout: Dropout of those two heads.
        glance_loss: Auxiliary loss of the glance network per `frame` or on the `video`'s mean logits.
        order: Order in which frames are processed, in training and test: a name or a permutation; see
            `frame_order`.
        exit_every: Frames between exits; larger ones cost less overhead. 0: no exits.
        exit_score: See `exit_scores`: `softmax` is the paper's confidence, `logit` the authors' code's.

    Source: paper sections 3 and 4; adafocus.md 5 and 6 for what only the code says.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frames: int = 16,
        patch_size: int = 128,
        glance: str = "mobilenet_v2",
        glance_side: int | None = None,
        glance_resize: str = "bilinear-corners",
        focus: str = "resnet50",
        patch_policy: str = "learned",
        policy_channels: int = 64,
        policy_hidden: int = 2048,
        policy_centred: bool = False,
        stop_gradient: bool = True,
        patch_grad_clip: bool = False,
        random_pass: bool = True,
        aux_losses: bool = True,
        classifier_hidden: int = 4096,
        classifier_shared: bool = False,
        dropout: float = 0.2,
        head_dropout: float = 0.2,
        glance_loss: str = "frame",
        order: str | Sequence[int] = "middle-first",
        exit_every: int = 1,
        exit_score: str = "softmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        if patch_policy not in POLICIES:
            raise unknown("patch_policy", patch_policy, POLICIES)
        check_patch_size(patch_size, self.resolution)
        self.frames, self.patch_size = frames, patch_size
        self.patch_policy, self.patch_grad_clip = patch_policy, patch_grad_clip
        self.stop_gradient, self.random_pass, self.aux_losses = stop_gradient, random_pass, aux_losses
        self.glance_side, self.glance_resize = glance_side or self.resolution, glance_resize
        self.glance_name, self.focus_name = glance, focus
        self.glance_loss, self.exit_score = glance_loss, exit_score
        self.register_buffer("order", torch.tensor(frame_order(order, frames)), persistent=False)
        self.exit_ends = [*range(exit_every, frames, exit_every), frames] if exit_every else []
        self.exits = len(self.exit_ends)

        self.glance = build_backbone(glance)
        self.focus = build_backbone(focus)
        if aux_losses:
            self.glance_head = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(self.glance.dim, num_classes))
            self.focus_head = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(self.focus.dim, num_classes))
        if patch_policy == "learned":
            side = -(-self.glance_side // self.glance.stride)
            self.policy = PatchPolicy(self.glance.dim, side, policy_channels, policy_hidden, centred=policy_centred)
        self.classifier = RunningMaxClassifier(
            self.glance.dim + self.focus.dim,
            num_classes,
            frames,
            hidden=classifier_hidden,
            shared=classifier_shared,
            dropout=dropout,
        )

    # -- what it says of itself ------------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"frames": 16, "patch_size": 128, "glance": "mobilenet_v2", "focus": "resnet50"}
        return {
            "frames": 8,
            "patch_size": resolution // 2,
            "glance": "mbtiny",
            "glance_side": resolution // 4,
            "glance_resize": "area",
            "focus": "restiny",
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
            InitFrom(f"pretrained:{self.focus_name}", into="focus"),
        )
        learned = self.patch_policy == "learned"
        if size == "paper":
            halved = ("glance", "glance_head") if self.aux_losses else ("glance",)
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
        return published(self.glance_name, "tsm" if self.glance_name == "mobilenet_v2" else str(self.glance_side))

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(self.frames),)

    @classmethod
    def from_official(cls, content: Mapping[str, Any], **given: Any) -> Converted | None:
        """Settings and state dict out of the authors' checkpoint; None for other methods' files.

        `patch_size` stands in no tensor; it must be given where it is not 128. Videos leave by the largest raw
        logit, the authors' criterion. Source: adafocus.md 6, 13.
        """
        state = family_state(content)
        if "policy_stn.gru.weight_ih_l0" not in state:
            return None
        mobile = any(key.startswith("global_CNN.features.") for key in state)
        placed = place(
            state,
            [
                ("global_CNN_fc.", under("glance_head.")),
                ("local_CNN_fc.", under("focus_head.")),
                ("global_CNN.", mobilenet("glance.", state, "global_CNN.") if mobile else resnet("glance.")),
                ("local_CNN.", resnet("focus.")),
                ("policy_stn.fc.0.", under("policy.fc.")),
                ("policy_stn.", under("policy.")),
                ("classifier.mlp.layers.", under("classifier.embed.")),
                ("classifier.classifiers.", substitute(r"^(\d+)\.1\.", r"classifier.heads.\1.")),
            ],
        )
        found = placed.state
        told = {
            "num_classes": found["classifier.heads.0.weight"].shape[0],
            "frames": sum(key.startswith("classifier.heads.") and key.endswith(".weight") for key in found),
            "glance": "mobilenet_v2" if mobile else "resnet50",
            "glance_side": None if mobile else 96,
            "focus": "resnet50",
            "policy_channels": found["policy.encoder.0.weight"].shape[0],
            "policy_hidden": found["policy.gru.weight_hh_l0"].shape[1],
            "classifier_hidden": found["classifier.embed.0.weight"].shape[0],
            "exit_score": "logit",
        }
        return converted("adafocus-v2", placed, told=told, assumed={"patch_size": 128}, given=given)

    @classmethod
    def parity(cls, case: ParityCase) -> dict[str, np.ndarray] | None:
        """Outputs for a recorded pair of the authors (harness.parity); None where it is not V2's."""
        return v2_outputs(cls, case)

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

        Source: adafocus.md 5.3.
        """
        batch, steps = x_BT3HW.shape[:2]
        x_N3HW = x_BT3HW.flatten(0, 1)
        maps = self.glance.features(self._shrink(x_N3HW))
        glance_ND = maps.mean((2, 3))
        losses = {}
        if self.aux_losses:
            losses["loss_glance"] = self._glance_loss(glance_ND.unflatten(0, (batch, steps)), target_B)
        passes = self._training_patches(maps.unflatten(0, (batch, steps)), random_BT2)
        for name, actions in passes.items():
            focus_ND = self.focus(crop(x_N3HW, actions.flatten(0, 1), self.patch_size))
            features = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, (batch, steps))
            losses[f"loss_{name}"] = every_step(self.classifier(features), target_B) / len(passes)
            if self.aux_losses:
                frame_logits = self.focus_head(focus_ND).unflatten(0, (batch, steps))
                losses[f"loss_focus_{name}"] = every_step(frame_logits, target_B) / len(passes)
        return losses

    def _training_patches(self, maps_BTDHW: Tensor, random_BT2: Tensor) -> dict[str, Tensor]:
        """Actions (B, T, 2) of each pass of the focus network."""
        if self.patch_policy == "random":
            return {"random": random_BT2}
        if self.patch_policy == "centre":
            return {"centre": torch.full_like(random_BT2, 0.5)}
        actions, _ = self.policy(maps_BTDHW.detach() if self.stop_gradient else maps_BTDHW)
        if self.patch_grad_clip:
            actions = clip_patch_gradients(actions.flatten(0, 1)).unflatten(0, actions.shape[:2])
        return {"learned": actions, "random": random_BT2} if self.random_pass else {"learned": actions}

    def _glance_loss(self, glance_BTD: Tensor, target_B: Tensor) -> Tensor:
        logits_BTC = self.glance_head(glance_BTD)
        if self.glance_loss == "video":
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
        there, memory, start = torch.arange(len(frames), device=frames.device), _Memory(), 0
        for k, end in enumerate(self.exit_ends):
            trace.exit_step[there.cpu().numpy()] = k
            actions = None if random_BT2 is None else random_BT2[there.to(random_BT2.device)]
            peaks, memory = self._look(frames, start, end, memory, trace, there, actions)
            last, start = k == self.exits - 1, end
            if thresholds[k] >= NEVER and not last:
                continue  # nobody leaves here, whatever the head says
            with trace.event("head", shape=(self.classifier.width,), videos=there.cpu().numpy()):
                logits = self.classifier.classify(peaks[:, -1:], end - 1)[:, 0]
            result[there] = logits.to(result.dtype)
            if thresholds[k] <= -NEVER or last:
                break
            stays = (~should_exit(logits, thresholds[k], self.exit_score)).nonzero()[:, 0]
            there, memory = there[stays], memory.keep(stays)
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
        there: Tensor | None,
        random_BT2: Tensor | None,
    ) -> tuple[Tensor, _Memory]:
        """Process the frames at steps start .. end-1 of the videos still there (rows of the batch; None: all).

        Returns the running maxima (B, end - start, H) and the memory afterwards.
        """
        steps = self.order[start:end]
        videos = None if there is None else there.cpu().numpy()
        count: dict[str, Any] = {"videos": videos, "rows": end - start}
        x_BT3HW = frames[:, steps] if there is None else frames[there[:, None], steps]  # copies these frames only
        with trace.event("glance", shape=(3, self.glance_side, self.glance_side), variant=self.glance_name, **count):
            x_N3HW = self.normalise(x_BT3HW.flatten(0, 1))
            maps = self.glance.features(self._shrink(x_N3HW))
            glance_ND = maps.mean((2, 3))
        if self.patch_policy == "learned":
            with trace.event("policy", shape=maps.shape[1:], **count):
                actions, state = self.policy(maps.unflatten(0, x_BT3HW.shape[:2]), memory.policy_1BH)
        else:
            given = None if random_BT2 is None else random_BT2[:, start:end].to(frames.device)
            actions, state = self._fixed_patches(x_BT3HW, given), None
        with trace.event("focus", shape=(3, self.patch_size, self.patch_size), variant=self.focus_name, **count):
            focus_ND = self.focus(crop(x_N3HW, actions.flatten(0, 1).to(x_N3HW.dtype), self.patch_size))
        with trace.event("classifier", shape=(self.classifier.dim,), **count):
            features = torch.cat((glance_ND, focus_ND), dim=1).unflatten(0, x_BT3HW.shape[:2])
            peaks = self.classifier.accumulate(features, memory.peak_BH)
        if trace.training_parts and self.aux_losses:
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

    def _shrink(self, x_N3HW: Tensor) -> Tensor:
        """Frames as the glance network sees them."""
        return resize(x_N3HW, self.glance_side, self.glance_resize)
