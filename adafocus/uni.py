"""Uni-AdaFocus (2024): where to look, when to look and when to stop, decided from a glance at coarse frames.

A light network glances at a few frames. From its maps one policy places a box in every frame, from its
vectors another weighs the frames; the deep network sees boxes of the frames that matter. A video that is
clear after the glance, or after some of the boxes, leaves: the batch shrinks, later work is not done.

    bench.py run --methods uni-adafocus --datasets glyphs

Shapes: B videos, T glance frames, M candidate frames, N focus frames, D features, H their width behind the
classifier's MLP, C classes, K exits, P the patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adafocus.glance_and_focus import GlanceAndFocus
from adafocus.order import frame_order
from adafocus.policy import scattered
from adafocus.settings import FULL_SIZE, BoxesAndFrames, Exits, FrameHeads, Networks, StepClassifier, tiny_networks
from adafocus.uni_policies import (
    InterpolationHead,
    SpatialPolicy,
    TemporalPolicy,
    monte_carlo_logits,
    per_candidate,
    size_prior,
)
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.exits import NEVER, point_thresholds, staying
from harness.contract.groups import Positive
from harness.contract.recognizer import Clips
from harness.contract.trace import Trace
from harness.errors import UsageError
from harness.layers.backbones import build_backbone, published
from harness.layers.crop import (
    clip_patch_gradients,
    deformable_boxes,
    deformable_crop,
    unstretched,
)
from harness.layers.frame_sampling import sample_frames
from harness.layers.losses import every_step
from harness.layers.running_max import RunningMaxClassifier

from mmaction.registry import MODELS

CARD = {
    "name": "uni-adafocus",
    "class": "UniAdaFocus",
    "title": "Uni-AdaFocus",
    "paper": "Uni-AdaFocus: Spatial-temporal Dynamic Computation for Video Recognition (arXiv 2412.11228)",
    "year": 2024,
    "adapts": ["space", "time", "sample"],
    "fidelity": "A",
    "source": "https://github.com/LeapLabTHU/Uni-AdaFocus",
    "authors": "adafocus.authors.uni",
    "summary": "Boxes of any size in the frames that matter; the policies learn from cropped features; early exits",
    "version": 2,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "exit": "test"},
    "settings": {},
}

TINY_DEPARTURES = (
    "small networks, one classifier for all glance and one for all focus steps, without MLP (paper: MLPs of 4096, "
    "one classifier per step)",
    "AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD, cosine, no clipping)",
    "auxiliary loss of the glance network on the clip's mean logits (paper: per frame)",
    "focus frames are processed coarse to fine (paper: in temporal order)",
    "the policies start at the frame's centre and at equal weights (paper: random initial weights)",
    "boxes of 1/2 to 1 of the frame's side, so never blown up to the patch, and no prior pulls them towards the whole "
    "frame, where small digits are lost (paper: boxes of 3/7 to 1, so from 3/4 of the patch, prior of weight 1)",
    "8 glance and 8 focus frames of 24, the glance at a quarter of the side (paper: 16 and 16 of 48, at the full side)",
    "twice the learning rate for the policies, the plain one for all else (paper: 0.2 for the policies, 0.5 for the "
    "glance network, its head and the spatial policy's head, 20 for the classifiers)",
)
PIXEL_DEPARTURE = (
    "the spatial policy learns through the patches' pixels too, as AdaFocus V2's does, each patch's gradient scaled "
    "down to the batch's median norm (paper: from interpolated features only; "
    "uni-adafocus[pixel_gradient=false] is that)"
)


class _Glance(NamedTuple):
    """What the glance yields; rows are videos."""

    maps_BTDHW: Tensor
    vectors_BTD: Tensor
    peaks_BTH: Tensor


@dataclass
class _Plan:
    """What is still to be looked at, and what the looks so far have left; rows are the videos still there."""

    candidates: Tensor
    """Of all videos, those that left included: frames are copied only where they are looked at."""
    there_B: Tensor
    """Rows of `candidates`."""
    indices_BN: Tensor
    actions_BN4: Tensor
    context_BH: Tensor
    peak_BH: Tensor | None = None

    def frames(self, start: int, end: int) -> Tensor:
        """The frames (B, end - start, 3, H, W) to be looked at from `start` to `end` - 1."""
        return self.candidates[self.there_B[:, None], self.indices_BN[:, start:end]]

    def keep(self, rows: Tensor) -> _Plan:
        peak = None if self.peak_BH is None else self.peak_BH[rows]
        kept = (self.there_B[rows], self.indices_BN[rows], self.actions_BN4[rows], self.context_BH[rows])
        return _Plan(self.candidates, *kept, peak)


@MODELS.register_module()
class UniAdaFocus(GlanceAndFocus):
    """Uni-AdaFocus on TSN-like networks, with its sample-wise exits at the points of the knob `exit`.

    Exit 0 lies behind the glance and before both policies; the others follow every `exit_every` focus frames.

    Args:
        num_classes: C.
        frames: N.
        glance_frames: T.
        group: Candidates per glance frame, M = T * group.
        patch_size: P in pixels.
        networks: The authors' code resizes glances as `bilinear-corners`.
        policies: See BoxesAndFrames.
        stop_gradient: The temporal policy and its loss train neither glance network nor glance head. The
            ActivityNet code lets them; the code of the TSM and X3D versions does not
            (docs/methods/uni-adafocus.md#losses, #on-tsm).
        pixel_gradient: Train the spatial policy through the patches' pixels too, as AdaFocus V2 does, each
            patch's gradient scaled down to the batch's median norm. Not in the paper; the tiny size needs it.
        classifier: Of the glance steps and of the focus steps, one each, see StepClassifier.
        heads: See FrameHeads.
        exits: See Exits; the code's two criteria are `logit` and `entropy`.

    In training both passes run both classifiers, and the spatial policy runs twice on the same input, as in the
    code: running statistics of the glance classifier's MLP and of that policy move twice per step.

    Source: docs/methods/uni-adafocus.md (the code).
    """

    test_settings = ("exit_every", "exit_score")

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 16,
        glance_frames: Positive = 16,
        group: Positive = 3,
        patch_size: Positive = 128,
        networks: Networks = Networks(glance_resize="bilinear-corners"),
        policies: BoxesAndFrames = BoxesAndFrames(),
        stop_gradient: bool = False,
        pixel_gradient: bool = False,
        classifier: StepClassifier = StepClassifier(),
        heads: FrameHeads = FrameHeads(),
        exits: Exits = Exits(),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        if frames > glance_frames * group:
            raise UsageError(f"{frames} focus frames cannot be taken out of {glance_frames} x {group} candidates")
        self.frames, self.glance_frames, self.group = frames, glance_frames, group
        self.candidates = glance_frames * group
        self.policies, self.heads = policies, heads
        self.stretch = policies.stretch(patch_size, self.resolution)
        self.stop_gradient, self.pixel_gradient = stop_gradient, pixel_gradient
        self.exit_score = exits.exit_score
        self.register_buffer("order", torch.tensor(frame_order(exits.order, frames)), persistent=False)
        self.exit_ends = [*range(0, frames, exits.exit_every), frames] if exits.exit_every else []
        self.exits = len(self.exit_ends)

        self.glance = build_backbone(networks.glance)
        self.focus = build_backbone(networks.focus)
        if heads.aux_losses or policies.temporal == "learned":
            self.glance_head = self.frame_head(self.glance.dim, heads.head_dropout)
        if heads.aux_losses:
            self.focus_head = self.frame_head(self.focus.dim, heads.head_dropout)
        if policies.spatial == "learned":
            self.spatial_policy = SpatialPolicy(
                self.glance.dim,
                self.map_side,
                policies.spatial_channels,
                outputs=policies.outputs,
                centred=policies.policies_centred,
            )
            size = max(1, patch_size * self.map_side // self.resolution)
            self.spatial_head = InterpolationHead(self.glance.dim, num_classes, size, self.stretch)
        if policies.temporal == "learned":
            self.temporal_policy = TemporalPolicy(
                self.glance.dim, policies.temporal_channels, centred=policies.policies_centred
            )
        options = classifier.options()
        self.glance_classifier = RunningMaxClassifier(self.glance.dim, num_classes, glance_frames, **options)
        self.classifier = RunningMaxClassifier(
            self.focus.dim, num_classes, frames, context=self.glance_classifier.width, **options
        )

    # -- what it says of itself ------------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"patch_size": 128, **FULL_SIZE}
        return {
            "frames": 8,
            "glance_frames": 8,
            "patch_size": resolution // 2,
            **tiny_networks(resolution),
            "smallest_box": resolution // 2,
            "spatial_channels": 16,
            "temporal_channels": 16,
            "policies_centred": True,
            "pixel_gradient": True,
            "size_weight": 0.0,
            "classifier_hidden": 0,
            "classifier_shared": True,
            "glance_loss": "video",
            "order": "coarse-to-fine",
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        init = (
            InitFrom(f"pretrained:{published(self.networks.glance, 'tsm')}", into="glance"),
            InitFrom(f"pretrained:{self.networks.focus}", into="focus"),
        )
        parts = dict(self.named_children())
        policies = tuple(name for name in ("spatial_policy", "temporal_policy") if name in parts)
        slow = tuple(name for name in ("glance", "glance_head", "spatial_head") if name in parts)
        if size == "paper":
            groups = (
                *((ParamGroup(policies, lr_mult=0.2),) if policies else ()),
                ParamGroup(slow, lr_mult=0.5),
                ParamGroup(("glance_classifier", "classifier"), lr_mult=20.0),
            )
            return [Stage("main", epochs=50, batch_size=32, lr=0.002, weight_decay=2e-4, groups=groups, init=init)]
        return [
            tiny_stage(
                "main",
                epochs=14,
                groups=(ParamGroup(policies, lr_mult=2.0),) if policies else (),
                init=init,
                departures=(*TINY_DEPARTURES, *((PIXEL_DEPARTURE,) if self.pixel_gradient else ())),
            )
        ]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (
            ClipRequest(self.candidates, name="candidates", sampler="uniform"),
            ClipRequest(
                self.glance_frames, name="glance", sampler="subset", subset_of="candidates", group=self.group
            ),
        )

    def as_clips(self, inputs: Clips | Tensor) -> Clips:
        """A plain tensor holds the candidates; the glance frames are taken from the middle of each group."""
        if isinstance(inputs, Mapping):
            return inputs
        if inputs.ndim != 5 or inputs.shape[1:3] != (self.candidates, 3):
            raise UsageError(f"expected clips (B, {self.candidates}, 3, H, W), got {tuple(inputs.shape)}")
        return {"candidates": inputs, "glance": inputs[:, self.group // 2 :: self.group]}

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross entropies at all steps, of single frames and of both policies; see `losses`."""
        clips = self.as_clips(inputs)
        noise = torch.rand(len(data_samples), self.frames, 3, device=clips["candidates"].device)
        return self.losses(clips, self.labels(data_samples), noise)

    def losses(
        self, clips: Clips, target_B: Tensor, noise_BN3: Tensor, gone: Sequence[Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Losses for given noise: the place of each focus frame, and of each random patch (y, x).

        `gone` gives the frames that the Monte-Carlo estimate takes out, see `monte_carlo_logits`.

        The losses of learned and of random patches are averaged; those of the glance and of the policies
        have weight 1. Without `pixel_gradient` none flows from the focus network to the policies: the spatial
        one learns from `loss_spatial` and `loss_size`, the temporal one from `loss_temporal`.

        Source: docs/methods/uni-adafocus.md#spatial-policy, #losses.
        """
        batch = len(target_B)
        maps, vectors_BTD = self._glance_at(clips["glance"], Trace(batch))
        weights_BT, losses = self._temporal_losses(vectors_BTD, target_B, gone)
        indices_BN = sample_frames(weights_BT, self.frames, self.candidates, noise_BN3[..., 0])[:, self.order]
        frames_N3HW = self.normalise(_pick(clips["candidates"], indices_BN)).flatten(0, 1)
        passes = self._training_boxes(maps, indices_BN, noise_BN3[..., 1:], target_B, losses)
        actions = torch.cat([boxes.flatten(0, 1) for boxes in passes.values()])
        patches = deformable_crop(frames_N3HW.repeat(len(passes), 1, 1, 1), actions, self.patch_size, self.stretch)
        focus_RBND = self.focus(patches).unflatten(0, (len(passes), batch, self.frames))
        for name, focus_BND in zip(passes, focus_RBND, strict=True):
            # both classifiers run in each pass: own dropout, and batch-norm statistics of the glance's move twice
            peaks_BTH = self.glance_classifier.accumulate(vectors_BTD)
            glance_steps = self.glance_classifier.classify(peaks_BTH)
            focus_steps = self.classifier.classify(self.classifier.accumulate(focus_BND), context_BE=peaks_BTH[:, -1])
            losses[f"loss_{name}"] = every_step(torch.cat((glance_steps, focus_steps), 1), target_B) / len(passes)
            if self.heads.aux_losses:
                losses[f"loss_focus_{name}"] = every_step(self.focus_head(focus_BND), target_B) / len(passes)
        return losses

    def _temporal_losses(
        self, vectors_BTD: Tensor, target_B: Tensor, gone: Sequence[Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Frame weights, and the losses of single glance frames and of the weights."""
        losses: dict[str, Tensor] = {}
        weights_BT = self._weights(vectors_BTD.detach() if self.stop_gradient else vectors_BTD)
        if self.heads.aux_losses or self.policies.temporal == "learned":
            logits_BTC = self.glance_head(vectors_BTD)
        if self.heads.aux_losses:
            mean = self.heads.glance_loss == "video"
            losses["loss_glance"] = every_step(logits_BTC.mean(1, keepdim=True) if mean else logits_BTC, target_B)
        if self.policies.temporal == "learned":
            logits_BTC = (logits_BTC.detach() if self.stop_gradient else logits_BTC).to(weights_BT.dtype)
            first, draws = max(1, self.glance_frames // 3), self.policies.draws
            expected = monte_carlo_logits(logits_BTC, weights_BT, first, draws=draws, gone=gone)
            losses["loss_temporal"] = F.cross_entropy(expected, target_B)
        return weights_BT, losses

    def _training_boxes(
        self, maps: Tensor, indices_BN: Tensor, random_BN2: Tensor, target_B: Tensor, losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Actions (B, N, 4) of each pass of the focus network; the spatial policy's losses go into `losses`."""
        random_BN4 = self._unstretched(random_BN2)
        if self.policies.spatial == "random":
            return {"random": random_BN4}
        if self.policies.spatial == "centre":
            return {"centre": self._unstretched(torch.full_like(random_BN2, 0.5))}
        learned = _pick(per_candidate(self._actions(maps.detach()), self.candidates), indices_BN)
        actions_BT4 = self._actions(maps.detach())  # once more: its batch-norm statistics move twice per step
        losses["loss_spatial"] = F.cross_entropy(self.spatial_head(maps, actions_BT4), target_B)
        if self.policies.deformable:
            losses["loss_size"] = self.policies.size_weight * size_prior(actions_BT4)
        if self.pixel_gradient:
            learned = clip_patch_gradients(learned.flatten(0, 1)).unflatten(0, indices_BN.shape)
        else:
            learned = learned.detach()
        return {"learned": learned, "random": random_BN4} if self.policies.random_pass else {"learned": learned}

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
        thresholds = point_thresholds(point, self.exits)
        glance = self._look_around(clips["glance"], trace, head=thresholds is not None)
        if thresholds is not None:
            return self._infer_until_sure(clips["candidates"], glance, thresholds, trace, generator)
        plan = self._plan(clips["candidates"], glance, trace, None, generator)
        peaks, _ = self._look(plan, 0, self.frames, trace, None)
        trace.frames_used = np.full(trace.videos, self.glance_frames + self.frames, dtype=np.float64)
        if trace.training_parts and len(self.classifier.heads) > 1:
            with self._head_event(trace, self.classifier, rows=self.frames - 1, training_only=True):
                self.classifier.classify(peaks[:, :-1], context_BE=plan.context_BH)
        with self._head_event(trace, self.classifier):
            return self.classifier.classify(peaks[:, -1:], self.frames - 1, plan.context_BH)[:, 0]

    def infer_exits(self, clips: Clips, *, trace: Trace) -> Tensor:
        """Logits at all exits (B, K, C)."""
        glance = self._look_around(clips["glance"], trace, head=True)
        with self._head_event(trace, self.glance_classifier):
            first = self._first_exit(glance.peaks_BTH)
        plan = self._plan(clips["candidates"], glance, trace, None, None)
        peaks, _ = self._look(plan, 0, self.frames, trace, None)
        with self._head_event(trace, self.classifier, rows=self.frames):
            steps = self.classifier.classify(peaks, context_BE=plan.context_BH)
        return torch.cat((first, steps[:, [end - 1 for end in self.exit_ends[1:]]]), dim=1)

    def _infer_until_sure(
        self,
        candidates: Tensor,
        glance: _Glance,
        thresholds: Sequence[float],
        trace: Trace,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Exit by exit; videos that are sure leave the batch, the policies run for those that stay."""
        there, rows = np.arange(len(candidates)), torch.arange(len(candidates), device=candidates.device)
        trace.exit_step = np.zeros(len(candidates), dtype=np.int64)
        with self._head_event(trace, self.glance_classifier):
            logits = self._first_exit(glance.peaks_BTH)[:, 0]
        result = logits.clone()
        plan: _Plan | None = None
        for k in range(self.exits):
            if k:
                start, end = self.exit_ends[k - 1 : k + 1]
                trace.exit_step[there] = k
                if plan is None:
                    rest = _Glance(*(part[rows] for part in glance))
                    plan = self._plan(candidates, rest, trace, (there, rows), generator)
                peaks, plan = self._look(plan, start, end, trace, there)
                with self._head_event(trace, self.classifier, videos=there):
                    logits = self.classifier.classify(peaks[:, -1:], end - 1, plan.context_BH)[:, 0]
                result[rows] = logits.to(result.dtype)
            if thresholds[k] <= -NEVER or k == self.exits - 1:
                break
            if thresholds[k] < NEVER:
                stays, staying_rows = staying(logits, thresholds[k], self.exit_score)
                there, rows = there[stays], rows[staying_rows]
                plan = None if plan is None else plan.keep(staying_rows)
            if not len(there):
                break
        trace.frames_used = self.glance_frames + np.asarray(self.exit_ends, dtype=np.float64)[trace.exit_step]
        return result

    def _look_around(self, glance: Tensor, trace: Trace, *, head: bool = False) -> _Glance:
        """The glance; with training-only parts also its steps' heads (`head`: exit 0 runs its own)."""
        steps = self.glance_frames
        maps, vectors = self._glance_at(glance, trace)
        with trace.event("classifier", variant="glance", shape=(self.glance_classifier.dim,), rows=steps):
            peaks = self.glance_classifier.accumulate(vectors)
        if trace.training_parts:
            unused = steps - head if len(self.glance_classifier.heads) > 1 else 1 - head
            if unused:
                with self._head_event(trace, self.glance_classifier, rows=unused, training_only=True):
                    self.glance_classifier.classify(peaks[:, :unused])
            if hasattr(self, "glance_head"):
                with trace.event("glance head", shape=vectors.shape[2:], rows=steps, training_only=True):
                    self.glance_head(vectors)
        return _Glance(maps, vectors, peaks)

    def _glance_at(self, glance: Tensor, trace: Trace) -> tuple[Tensor, Tensor]:
        """Maps (B, T, D, h, w) of the glance frames and their vectors (B, T, D)."""
        side = self.glance_side
        with trace.event("glance", shape=(3, side, side), variant=self.networks.glance, rows=self.glance_frames):
            x_N3HW = self.shrink(self.normalise(glance.flatten(0, 1)))
            maps = self.glance.features(x_N3HW).unflatten(0, glance.shape[:2])
            return maps, maps.mean((3, 4))

    def _plan(
        self,
        candidates: Tensor,
        glance: _Glance,
        trace: Trace,
        there: tuple[np.ndarray, Tensor] | None,
        generator: torch.Generator | None,
    ) -> _Plan:
        """Run the policies for the videos still there, which are the glance's.

        They say which frames, in processing order, and which box in each. `there` are the videos' rows of the
        candidates, on the host and on the candidates' device; None: all.
        """
        maps = glance.maps_BTDHW
        videos, rows = (None, None) if there is None else there
        there_B = torch.arange(len(candidates), device=candidates.device) if rows is None else rows
        if self.policies.temporal == "learned":
            with trace.event("temporal policy", shape=glance.vectors_BTD.shape[1:], videos=videos):
                weights_BT = self._weights(glance.vectors_BTD)
        else:
            weights_BT = self._weights(glance.vectors_BTD)
        indices_BN = sample_frames(weights_BT, self.frames, self.candidates)[:, self.order]
        if self.policies.spatial == "learned":
            with trace.event("spatial policy", shape=maps.shape[1:], videos=videos):
                actions_BT4 = self._actions(maps)
            actions_BN4 = _pick(per_candidate(actions_BT4, self.candidates), indices_BN)
            if trace.training_parts:
                with trace.event("spatial head", shape=maps.shape[1:], videos=videos, training_only=True):
                    self.spatial_head(maps, actions_BT4)
        elif self.policies.spatial == "centre":
            actions_BN4 = self._unstretched(torch.full((*indices_BN.shape, 2), 0.5, device=candidates.device))
        elif generator is not None:
            shape = (trace.videos, self.frames, 2)
            places = torch.rand(shape, generator=generator, device=generator.device).to(candidates.device)
            actions_BN4 = self._unstretched(places[there_B])
        else:
            actions_BN4 = self._unstretched(scattered(candidates[there_B[:, None], indices_BN]))
        return _Plan(candidates, there_B, indices_BN, actions_BN4, glance.peaks_BTH[:, -1])

    def _look(
        self, plan: _Plan, start: int, end: int, trace: Trace, videos: np.ndarray | None
    ) -> tuple[Tensor, _Plan]:
        """Boxes start .. end-1 of the videos still there: running maxima (B, end - start, H) and the plan after."""
        count: dict[str, Any] = {"videos": videos, "rows": end - start}
        indices, actions = plan.indices_BN[:, start:end], plan.actions_BN4[:, start:end]
        with trace.event("focus", shape=(3, self.patch_size, self.patch_size), variant=self.networks.focus, **count):
            x_N3HW = self.normalise(plan.frames(start, end)).flatten(0, 1)
            boxes = actions.flatten(0, 1).to(x_N3HW.dtype)
            focus_ND = self.focus(deformable_crop(x_N3HW, boxes, self.patch_size, self.stretch))
        with trace.event("classifier", variant="focus", shape=(self.classifier.dim,), **count):
            peaks = self.classifier.accumulate(focus_ND.unflatten(0, indices.shape), plan.peak_BH)
        if trace.training_parts and self.heads.aux_losses:
            with trace.event("focus head", shape=focus_ND.shape[1:], training_only=True, **count):
                self.focus_head(focus_ND)
        if trace.details:
            shares = deformable_boxes(actions, self.stretch)
            for row, steps in enumerate(indices.tolist()):
                trace.note_boxes("focus", steps, shares[row : row + 1], [row if videos is None else int(videos[row])])
        return peaks, replace(plan, peak_BH=peaks[:, -1])

    def _first_exit(self, peaks_BTH: Tensor) -> Tensor:
        """Logits (B, 1, C) after the glance."""
        return self.glance_classifier.classify(peaks_BTH[:, -1:], self.glance_frames - 1)

    @staticmethod
    def _head_event(trace: Trace, classifier: RunningMaxClassifier, **count: Any) -> Any:
        return trace.event("head", shape=(classifier.width + classifier.context,), **count)

    # -- parts of both ---------------------------------------------------------------------------

    def _weights(self, vectors_BTD: Tensor) -> Tensor:
        """Importance (B, T) of the glance frames."""
        if self.policies.temporal == "learned":
            return self.temporal_policy(vectors_BTD)
        return vectors_BTD.new_full(vectors_BTD.shape[:2], 1 / self.glance_frames, dtype=torch.float32)

    def _actions(self, maps_BTDHW: Tensor) -> Tensor:
        """Boxes (B, T, 4) of the glance frames."""
        actions = self.spatial_policy(maps_BTDHW)
        return actions if self.policies.deformable else self._unstretched(actions)

    def _unstretched(self, places: Tensor) -> Tensor:
        """Boxes (..., 4) of P x P pixels at the places (..., 2)."""
        return torch.cat((places, torch.full_like(places, unstretched(self.stretch))), dim=-1)


def _pick(x_BM: Tensor, indices_BN: Tensor) -> Tensor:
    """Each video's own entries: (B, M, ...) to (B, N, ...)."""
    return x_BM[torch.arange(len(x_BM), device=x_BM.device)[:, None], indices_BN]
