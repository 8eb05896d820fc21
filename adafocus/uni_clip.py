"""What Uni-AdaFocus on TSM and on X3D share: one box per video, frames that matter, and two exits.

A light network over time glances at a few frames. From its maps a policy places one box for the whole
video, from its vectors another weighs the frames; the deep network sees the box in frames of its own. A
video that is clear after the glance leaves before the policies run.

Shapes: B videos, T glance frames, M candidate frames, N focus frames, D features, C classes, P the patch's side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adafocus.clip_nets import ClipNet
from adafocus.glance_and_focus import ClipGlanceAndFocus, shifted
from adafocus.policy import scattered
from adafocus.settings import BoxesAndFrames, Networks, tiny_networks
from adafocus.uni_policies import InterpolationHead, SpatialPolicy, TemporalPolicy, monte_carlo_logits, size_prior
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, ParamGroup, Stage, tiny_stage
from harness.contract.exits import Score
from harness.contract.frames import Frames
from harness.contract.groups import Positive
from harness.contract.recognizer import Clips
from harness.layers.backbones import published
from harness.layers.crop import deformable_boxes, deformable_crop, unstretched
from harness.layers.frame_sampling import sample_frames

TINY_DEPARTURES = (
    "small networks, dropout 0.2 (paper: 0.5)",
    "8 glance and 8 focus frames, the glance at a quarter of the side (paper: 8 and 12, at the full side, on TSM; "
    "16 and 32, at 5/7 of it, on X3D)",
    "patches of 5/8 of the frame's side and boxes of 1/2 to 1 of it (paper: 4/7, boxes of 3/7 to 1)",
    "AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD, cosine, clipping at 20)",
    "half the learning rate for the policies, the full one for all else (paper: 0.2 on TSM and 0.4 on X3D for the "
    "policies, 0.5 for the glance network and the spatial policy's head)",
    "glance and focus frames share the random crop in training (paper's code: each list its own)",
    "no prior on the box's size (paper: weight 0.5); under AdamW it drives the box to the whole frame in one epoch",
    "the policies start at the frame's centre and at equal weights (paper: random initial weights)",
)


class _State(NamedTuple):
    """What is known of the videos still there."""

    clips: Mapping[str, Frames]
    places_B2: Tensor | None
    """Random places, where they are drawn."""
    maps_BTDHW: Tensor | None = None
    vectors_BTD: Tensor | None = None
    glance_BC: Tensor | None = None
    """The glance's half of the sum, where an exit has needed it."""


class UniClip(ClipGlanceAndFocus):
    """Uni-AdaFocus for networks over time; a subclass names the two networks.

    Exit 0 lies behind the glance and before both policies, exit 1 at the end.

    Args:
        num_classes: C.
        frames: T.
        focus_frames: N.
        group: Candidates per focus frame, M = N * group.
        patch_size: P in pixels.
        networks: See Networks; the subclass says what they are.
        policies: See BoxesAndFrames; one box for the whole video.
        align_crops: Glance and candidate frames share the random crop in training. Off, as in the code: the
            authors crop both lists on their own, so in training the box is off by the crops' difference.
        sample_wise: With the exit behind the glance; off: no exits.
        exit_head: Head of the glance network that speaks at exit 0: `aux`, which its backbone learnt through,
            as in the code, or `main`, one half of the final sum. X3D's published exit costs count `main` alone.
        exit_score: See `exit_scores`; the code's confidence is `logit`.

    Source: docs/methods/uni-adafocus.md#on-tsm, #on-x3d (the code).
    """

    test_settings = ("sample_wise", "exit_head", "exit_score")

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 8,
        focus_frames: Positive = 12,
        group: Positive = 3,
        patch_size: Positive = 128,
        networks: Networks = Networks(),
        policies: BoxesAndFrames = BoxesAndFrames(size_weight=0.5),
        align_crops: bool = False,
        sample_wise: bool = True,
        exit_head: Literal["aux", "main"] = "aux",
        exit_score: Score = "softmax",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        self.frames, self.focus_frames, self.candidates = frames, focus_frames, focus_frames * group
        self.policies, self.align_crops = policies, align_crops
        self.stretch = policies.stretch(patch_size, self.resolution)
        self.exits, self.exit_head, self.exit_score = 2 * sample_wise, exit_head, exit_score
        self.exit_frames = [frames, frames + focus_frames] if sample_wise else [frames + focus_frames]

    def _assemble(self, glance: ClipNet, focus: ClipNet) -> None:
        """Take the two networks and build the policies for them; called once, by the subclass."""
        self.glance, self.focus = glance, focus
        policies, centred = self.policies, self.policies.policies_centred
        if policies.spatial == "learned":
            self.spatial_policy = SpatialPolicy(
                glance.dim,
                self.map_side,
                policies.spatial_channels,
                self.frames,
                outputs=policies.outputs,
                centred=centred,
            )
            cells = self._cells(self.patch_size * self.map_side / self.resolution)
            self.spatial_head = InterpolationHead(glance.dim, self.num_classes, cells, self.stretch)
        if policies.temporal == "learned":
            self.temporal_policy = TemporalPolicy(glance.dim, policies.temporal_channels, centred=centred)

    def _cells(self, exact: float) -> int:
        """Side of the cropped glance map, out of the patch's exact share of it."""
        raise NotImplementedError

    # -- what it says of itself ------------------------------------------------------------------

    @staticmethod
    def _tiny_settings(resolution: int, suffix: str = "") -> dict[str, Any]:
        """Settings of the tiny size; `suffix` as of `tiny_networks`."""
        return {
            "frames": 8,
            "focus_frames": 8,
            "patch_size": resolution * 5 // 8,
            "smallest_box": resolution // 2,
            "size_weight": 0.0,
            **tiny_networks(resolution, suffix),
            "spatial_channels": 16,
            "temporal_channels": 16,
            "policies_centred": True,
            "dropout": 0.2,
            "align_crops": True,
        }

    def _init(self) -> tuple[InitFrom, ...]:
        return (
            InitFrom(f"pretrained:{published(self.glance.name, 'tsm')}", into="glance.backbone"),
            InitFrom(f"pretrained:{self.focus.name}", into="focus.backbone"),
        )

    def _groups(self, policies: float, glance: float) -> tuple[ParamGroup, ...]:
        """Learning-rate factors of the policies, and of the glance network with the spatial policy's head."""
        parts = dict(self.named_children())
        learnt = tuple(name for name in ("spatial_policy", "temporal_policy") if name in parts)
        slow = tuple(name for name in ("glance", "spatial_head") if name in parts)
        return (*((ParamGroup(learnt, lr_mult=policies),) if learnt else ()), ParamGroup(slow, lr_mult=glance))

    def _tiny_recipe(self, **changes: Any) -> list[Stage]:
        groups = self._groups(0.5, 1.0)
        return [tiny_stage("main", **{"groups": groups, "init": self._init(), "departures": TINY_DEPARTURES} | changes)]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        crops: Any = "shared" if self.align_crops else "own"
        return (
            ClipRequest(self.frames, "glance", sampler="uniform"),
            ClipRequest(self.candidates, "candidates", sampler="uniform", crop=crops),
        )

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Cross entropies of the sum, of each network's auxiliary head and of both policies; see `losses`."""
        clips = self.as_clips(inputs)
        batch, device = len(clips["glance"]), clips["glance"].device
        frame_noise_BN = torch.rand(batch, self.focus_frames, device=device)
        return self.losses(clips, self.labels(data_samples), frame_noise_BN, torch.rand(batch, 2, device=device))

    def losses(
        self,
        clips: Clips,
        target_B: Tensor,
        frame_noise_BN: Tensor,
        random_B2: Tensor,
        gone: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses for given noise of the frame sampler and given random boxes (y, x).

        `gone` gives the frames that the Monte-Carlo estimate takes out, see `monte_carlo_logits`.

        The losses of learned and of random boxes are averaged; those of the glance and of the policies have
        weight 1. The sum's loss trains the two heads alone, each network learns from its auxiliary head, the
        temporal policy from `loss_temporal` alone, the spatial one from `loss_spatial` and `loss_size`.

        Source: docs/methods/uni-adafocus.md#on-tsm.
        """
        maps, vectors_BTD = self.see(clips["glance"])
        vectors = vectors_BTD.flatten(0, 1)
        logits_BC = self.glance.logits(vectors, self.frames)
        frame_logits_BTC = self.glance.aux_logits(vectors, self.frames)
        losses = {"loss_glance": cross_entropy(frame_logits_BTC.mean(1), target_B)}
        weights_BT = self._weights(vectors_BTD.detach())
        if self.policies.temporal == "learned":
            first = max(1, self.frames // 3)
            known = frame_logits_BTC.detach().to(weights_BT.dtype)
            expected = monte_carlo_logits(known, weights_BT, first, draws=self.policies.draws, gone=gone)
            losses["loss_temporal"] = cross_entropy(expected, target_B)
        passes = self._training_boxes(maps.detach(), random_B2, target_B, losses)
        indices_BN = sample_frames(weights_BT, self.focus_frames, self.candidates, frame_noise_BN)
        x_BN3HW = _pick(clips["candidates"], indices_BN)
        for name, focus_ND in zip(passes, self._look_each_time(x_BN3HW, list(passes.values())), strict=True):
            total_BC = logits_BC + self.focus.logits(focus_ND, self.focus_frames)
            own_BC = self.focus.aux_logits(focus_ND, self.focus_frames).mean(1)
            losses[f"loss_{name}"] = cross_entropy(total_BC, target_B) / len(passes)
            losses[f"loss_focus_{name}"] = cross_entropy(own_BC, target_B) / len(passes)
        return losses

    def _training_boxes(
        self, maps: Tensor, random_B2: Tensor, target_B: Tensor, losses: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Actions (B, 4) of each pass of the focus network; the spatial policy's losses go into `losses`."""
        if self.policies.spatial == "random":
            return {"random": self._unstretched(random_B2)}
        if self.policies.spatial == "centre":
            return {"centre": self._unstretched(torch.full_like(random_B2, 0.5))}
        actions_B4 = self._box(maps)
        losses["loss_spatial"] = cross_entropy(self.spatial_head(maps, actions_B4[:, None]), target_B)
        if self.policies.deformable:
            losses["loss_size"] = self.policies.size_weight * size_prior(actions_B4)
        with torch.no_grad():  # once more for the pixels, as in the code: its running statistics move twice per step
            learned = {"learned": self._box(maps)}
        return learned | {"random": self._unstretched(random_B2)} if self.policies.random_pass else learned

    def _look_each_time(self, x_BN3HW: Tensor, boxes: Sequence[Tensor]) -> Sequence[Tensor]:
        """Vectors (B * N, D) of the same frames for each set of boxes (B, 4).

        All go through the focus network as one batch, so batch norm takes statistics of learned and random ones
        together, as the authors' code does.
        """
        both = self.look(x_BN3HW.repeat(len(boxes), 1, 1, 1, 1), torch.cat(list(boxes)))
        return both.flatten(0, 1).chunk(len(boxes))

    # -- evaluation ------------------------------------------------------------------------------

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> _State:
        places = None
        if self.policies.spatial == "random" and generator is not None:
            drawn = torch.rand(len(clips["glance"]), 2, generator=generator, device=generator.device)
            places = drawn.to(clips["glance"].device)
        return _State(clips, places)

    def segment(self, state: _State, first: int, last: int) -> tuple[_State, Tensor]:
        """The glance; then the policies and the boxes."""
        leaving = self.exits and last == 0
        if state.maps_BTDHW is None or state.vectors_BTD is None:
            maps, vectors = self.see(state.clips["glance"].all())
            state = state._replace(maps_BTDHW=maps, vectors_BTD=vectors)
            if self.training_parts and not (leaving and self.exit_head == "aux"):
                self.glance_frame_logits(vectors, training_only=True)  # the published costs of TSM count it
        maps, vectors = state.maps_BTDHW, state.vectors_BTD
        assert maps is not None and vectors is not None
        if leaving and self.exit_head == "aux":
            return state, self.glance_frame_logits(vectors).mean(1)
        glance_BC = self.glance_logits(vectors) if state.glance_BC is None else state.glance_BC
        if leaving:
            return state._replace(glance_BC=glance_BC), glance_BC
        return state, glance_BC + self.focus_logits(self._closely(state, maps, vectors))

    def _closely(self, state: _State, maps_BTDHW: Tensor, vectors_BTD: Tensor) -> Tensor:
        """Vectors (B, N, D) of the box in the frames that matter."""
        weights_BT = self.weigh(vectors_BTD) if self.policies.temporal == "learned" else self._weights(vectors_BTD)
        indices_BN = sample_frames(weights_BT, self.focus_frames, self.candidates)
        if self.policies.spatial == "learned":
            actions_B4 = self.place(maps_BTDHW)
            if self.training_parts:
                self.spatial_aux(maps_BTDHW, actions_B4, training_only=True)
        else:
            actions_B4 = self._unstretched(self._fixed_places(state))
        focus_BND = self.look(state.clips["candidates"].at(indices_BN), actions_B4)
        if self.training_parts:
            self.focus_frame_logits(focus_BND, training_only=True)
        boxes = (-1, self.focus_frames, -1)
        self.note_boxes(
            "focus", indices_BN, lambda: deformable_boxes(actions_B4, self.stretch)[:, None].expand(boxes)
        )
        return focus_BND

    def _fixed_places(self, state: _State) -> Tensor:
        """Places (B, 2) without policy."""
        candidates = state.clips["candidates"]
        if self.policies.spatial == "centre":
            return torch.full((len(candidates), 2), 0.5, device=candidates.device)
        return scattered(candidates.at([0]))[:, 0] if state.places_B2 is None else state.places_B2

    @component("glance", variant=lambda model: model.glance.name, side=lambda model: model.glance_side, steps=shifted)
    def see(self, clip_BT3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, T, D, h, w) and vectors (B, T, D) of whole frames."""
        maps = self.glance.maps(self.shrink(self.normalise(clip_BT3HW.flatten(0, 1))), self.frames)
        return self._over_time(maps), self._over_time(self.glance.vectors(maps))

    @component("temporal policy")
    def weigh(self, vectors_BTD: Tensor) -> Tensor:
        """Importance (B, T) of the glance frames."""
        return self._weights(vectors_BTD)

    @component("spatial policy")
    def place(self, maps_BTDHW: Tensor) -> Tensor:
        """One box (B, 4) per video."""
        return self._box(maps_BTDHW)

    @component("focus", variant=lambda model: model.focus.name, side=lambda model: model.patch_size, steps=shifted)
    def look(self, clip_BN3HW: Tensor, actions_B4: Tensor) -> Tensor:
        """Vectors (B, N, D) of the same box in all frames of a video."""
        x_N3HW = self.normalise(clip_BN3HW.flatten(0, 1))
        boxes = actions_B4.to(x_N3HW.dtype).repeat_interleave(self.focus_frames, 0)
        patches = deformable_crop(x_N3HW, boxes, self.patch_size, self.stretch)
        return self.focus.vectors(self.focus.maps(patches, self.focus_frames)).unflatten(0, clip_BN3HW.shape[:2])

    @component("spatial head")
    def spatial_aux(self, maps_BTDHW: Tensor, actions_B4: Tensor) -> Tensor:
        """Logits (B, C) of the box cut out of the maps."""
        return self.spatial_head(maps_BTDHW, actions_B4[:, None])

    # -- parts of both ---------------------------------------------------------------------------

    def _weights(self, vectors_BTD: Tensor) -> Tensor:
        """Importance (B, T) of the glance frames."""
        if self.policies.temporal == "learned":
            return self.temporal_policy(vectors_BTD)
        return vectors_BTD.new_full(vectors_BTD.shape[:2], 1 / self.frames, dtype=torch.float32)

    def _box(self, maps_BTDHW: Tensor) -> Tensor:
        """One action (B, 4) per video."""
        actions = self.spatial_policy(maps_BTDHW)[:, 0]
        return actions if self.policies.deformable else self._unstretched(actions)

    def _over_time(self, x_N: Tensor) -> Tensor:
        """Of glance frames, (B * T, ...) to (B, T, ...)."""
        return x_N.unflatten(0, (-1, self.frames))

    def _unstretched(self, places: Tensor) -> Tensor:
        """Boxes (..., 4) of P x P pixels at the places (..., 2)."""
        return torch.cat((places, torch.full_like(places, unstretched(self.stretch))), dim=-1)


def _pick(x_BM: Tensor, indices_BN: Tensor) -> Tensor:
    """Each video's own frames: (B, M, ...) to (B, N, ...)."""
    return x_BM[torch.arange(len(x_BM), device=x_BM.device)[:, None], indices_BN]
