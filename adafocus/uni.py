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
from typing import Any, NamedTuple

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
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Positive
from harness.contract.recognizer import Clips
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


class _Plan(NamedTuple):
    """What is to be looked at, in processing order; rows are videos."""

    indices_BN: Tensor
    actions_BN4: Tensor
    context_BH: Tensor
    peak_BH: Tensor | None = None


class _State(NamedTuple):
    """What is known of the videos still there."""

    clips: Mapping[str, Frames]
    places_BN2: Tensor | None
    """Random places, where they are drawn."""
    glance: tuple[Tensor, Tensor, Tensor] | None = None
    """Maps (B, T, D, h, w), vectors (B, T, D) and running maximum (B, H); None before the glance, and with a plan."""
    plan: _Plan | None = None


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
        ends = [*range(0, frames, exits.exit_every), frames] if exits.exit_every else [frames]
        self.exit_frames = [glance_frames + end for end in ends]
        self.exits = len(ends) if exits.exit_every else 0

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
        maps, vectors_ND = self.see(clips["glance"].flatten(0, 1))
        maps, vectors_BTD = (x.unflatten(0, (batch, self.glance_frames)) for x in (maps, vectors_ND))
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

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> _State:
        places = None
        if self.policies.spatial == "random" and generator is not None:
            shape = (len(clips["candidates"]), self.frames, 2)
            places = torch.rand(shape, generator=generator, device=generator.device).to(clips["candidates"].device)
        return _State(clips, places)

    def segment(self, state: _State, first: int, last: int) -> tuple[_State, Tensor]:
        """The glance, then the policies, then the boxes up to those of exit `last`."""
        done, end = (max(0, self.exit_frames[k] - self.glance_frames) if k >= 0 else 0 for k in (first - 1, last))
        if state.glance is None and state.plan is None:
            state = state._replace(glance=self._look_around(state.clips["glance"].all(), exits_here=not end))
        if not end:
            assert state.glance is not None
            return state, self.conclude_glance(state.glance[2], step=self.glance_frames - 1)
        plan = state.plan or self._plan(state)
        indices, actions = plan.indices_BN[:, done:end], plan.actions_BN4[:, done:end]
        x_N3HW = state.clips["candidates"].at(indices).flatten(0, 1)
        focus_ND = self.look(x_N3HW, actions.flatten(0, 1))
        peaks_BTH = self.remember(focus_ND.unflatten(0, indices.shape), plan.peak_BH)
        self.note_boxes("focus", indices, lambda: deformable_boxes(actions, self.stretch))
        if self.training_parts:
            self._unneeded(focus_ND, peaks_BTH, plan.context_BH, done)
        peak_BH = peaks_BTH[:, -1]
        logits = self.conclude(peak_BH, plan.context_BH, step=end - 1)
        return state._replace(glance=None, plan=plan._replace(peak_BH=peak_BH)), logits

    def _look_around(self, glance_BT3HW: Tensor, *, exits_here: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The glance; where training-only parts are counted also its steps' heads (exit 0 runs its own)."""
        maps, vectors_ND = self.see(glance_BT3HW.flatten(0, 1))
        maps, vectors_BTD = (x.unflatten(0, glance_BT3HW.shape[:2]) for x in (maps, vectors_ND))
        peaks_BTH = self.remember_glance(vectors_BTD)
        if self.training_parts:
            of_all = self.glance_frames if len(self.glance_classifier.heads) > 1 else 1
            for step in range(of_all - exits_here):
                self.conclude_glance(peaks_BTH[:, step], step=step, training_only=True)
            if hasattr(self, "glance_head"):
                self.glance_aux(vectors_ND, training_only=True)
        return maps, vectors_BTD, peaks_BTH[:, -1]

    def _plan(self, state: _State) -> _Plan:
        """Run the policies: which frames, in processing order, and which box in each."""
        assert state.glance is not None
        maps_BTDHW, vectors_BTD, context_BH = state.glance
        weights_BT = self.weigh(vectors_BTD) if self.policies.temporal == "learned" else self._weights(vectors_BTD)
        indices_BN = sample_frames(weights_BT, self.frames, self.candidates)[:, self.order]
        if self.policies.spatial == "learned":
            actions_BT4 = self.place(maps_BTDHW)
            actions_BN4 = _pick(per_candidate(actions_BT4, self.candidates), indices_BN)
            if self.training_parts:
                self.spatial_aux(maps_BTDHW, actions_BT4, training_only=True)
        elif self.policies.spatial == "centre":
            actions_BN4 = self._unstretched(torch.full((*indices_BN.shape, 2), 0.5, device=indices_BN.device))
        elif state.places_BN2 is not None:
            actions_BN4 = self._unstretched(state.places_BN2)
        else:
            actions_BN4 = self._unstretched(scattered(state.clips["candidates"].at(indices_BN)))
        return _Plan(indices_BN, actions_BN4, context_BH)

    def _unneeded(self, focus_ND: Tensor, peaks_BTH: Tensor, context_BH: Tensor, done: int) -> None:
        """What only the losses need: the auxiliary head, and the heads of all steps but the last."""
        if len(self.classifier.heads) > 1:
            for step, peak_BH in enumerate(peaks_BTH[:, :-1].unbind(1), done):
                self.conclude(peak_BH, context_BH, step=step, training_only=True)
        if self.heads.aux_losses:
            self.focus_aux(focus_ND, training_only=True)

    @component("classifier", variant="glance", steps=True)
    def remember_glance(self, vectors_BTD: Tensor) -> Tensor:
        """Running maxima (B, T, H) of the glance."""
        return self.glance_classifier.accumulate(vectors_BTD)

    @component("temporal policy")
    def weigh(self, vectors_BTD: Tensor) -> Tensor:
        """Importance (B, T) of the glance frames."""
        return self._weights(vectors_BTD)

    @component("spatial policy")
    def place(self, maps_BTDHW: Tensor) -> Tensor:
        """Boxes (B, T, 4) of the glance frames."""
        return self._actions(maps_BTDHW)

    @component("focus", variant=lambda model: model.networks.focus, side=lambda model: model.patch_size)
    def look(self, x_N3HW: Tensor, actions_N4: Tensor) -> Tensor:
        """Vectors (N, D) of the boxes."""
        x_N3HW = self.normalise(x_N3HW)
        return self.focus(deformable_crop(x_N3HW, actions_N4.to(x_N3HW.dtype), self.patch_size, self.stretch))

    @component("classifier", variant="focus", steps=True)
    def remember(self, focus_BND: Tensor, peak_BH: Tensor | None) -> Tensor:
        """Running maxima (B, N, H) of the boxes."""
        return self.classifier.accumulate(focus_BND, peak_BH)

    @component("head", variant="glance", fast=False)
    def conclude_glance(self, peak_BH: Tensor, *, step: int) -> Tensor:
        """Logits (B, C) after a glance step."""
        return self.glance_classifier.classify(peak_BH[:, None], step)[:, 0]

    @component("head", variant="focus", fast=False)
    def conclude(self, peak_BH: Tensor, context_BH: Tensor, *, step: int) -> Tensor:
        """Logits (B, C) after a box."""
        return self.classifier.classify(peak_BH[:, None], step, context_BH)[:, 0]

    @component("spatial head")
    def spatial_aux(self, maps_BTDHW: Tensor, actions_BT4: Tensor) -> Tensor:
        """Logits (B, C) of the boxes cut out of the maps."""
        return self.spatial_head(maps_BTDHW, actions_BT4)

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
