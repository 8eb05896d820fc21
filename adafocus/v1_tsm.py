"""AdaFocus V1 on TSM (ICCV 2021): temporally shifted networks, one patch place per video, learnt by reinforcement.

For data sets where order matters (Something-Something). A light network glances at 8 frames, a policy draws
from them one place for the 12 frames that a deep network sees closely, and both networks' logits are added.

    bench.py run --methods adafocus-v1-tsm,adafocus-v2-tsm --datasets glyphs-motion

Shapes: B videos, T glance frames, S focus frames, N = B * T or B * S, D features, C classes, P the patch's side,
R places drawn per video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import cross_entropy

from adafocus.clip_nets import ShiftedNet, stacked
from adafocus.glance_and_focus import GlanceAndFocus
from adafocus.policy import gaussian_policy, scattered
from adafocus.settings import FULL_SIZE, Networks, PolicyWidths, tiny_networks
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, OperatingPoint, ParamGroup, Stage, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Dropout, Positive, Rate
from harness.contract.recognizer import Clips
from harness.errors import unknown
from harness.layers.backbones import published
from harness.layers.crop import crop_boxes, hard_crop
from harness.layers.ppo import normalised, ppo_losses
from harness.layers.precision import at_least_float32, no_autocast

from mmaction.registry import MODELS

CARD = {
    "name": "adafocus-v1-tsm",
    "class": "AdaFocusV1TSM",
    "title": "AdaFocus V1 on TSM",
    "paper": "Adaptive Focus for Efficient Video Recognition (arXiv 2105.03245)",
    "year": 2021,
    "adapts": ["space"],
    "fidelity": "A",
    "source": "https://github.com/blackfeather-wang/AdaFocus",
    "authors": "adafocus.authors.v1_tsm",
    "summary": "Networks with temporal shift; one patch place per video, learnt by reinforcement (PPO)",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "patches": "test"},
    "settings": {},
}

PHASES = ("glance", "focus", "random", "policy", "finetune")
PATCHES = ("learned", "random", "centre")

TINY_DEPARTURES = (
    "small networks, 8 focus frames (paper: 12)",
    "AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD)",
)
TINY_POLICY_DEPARTURES = (
    "two places drawn per video and update (paper: one)",
    "learning rate 3e-3 (paper: 3e-4)",
)


@MODELS.register_module()
class AdaFocusV1TSM(GlanceAndFocus):
    """AdaFocus V1 on TSM.

    The authors' released optimizer leaves all but the focus network's first convolution at learning rate 0 in
    the stages `random` and `finetune` (docs/methods/adafocus-v1.md#learning-rates). The recipes here train
    what was meant.

    Args:
        num_classes: C.
        frames: T, frames glanced at.
        focus_frames: S, frames looked at closely, sampled on their own.
        patch_size: P in pixels.
        networks: See Networks.
        policy: Width of the policy's 1x1 convolution, and of its linear layer and GRU, see gaussian_policy.
        action_std: Standard deviation of the places drawn in training. A place outside [0, 1] is moved to
            the border, and its probability taken there, as in the code.
        samples: R, places drawn per video and update.
        dropout: Before the heads.
        align_crops: Glance and focus frames share the random crop in training. Off, as in the code.

    Source: docs/methods/adafocus-v1.md#on-tsm for what only the code says.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 8,
        focus_frames: Positive = 12,
        patch_size: Positive = 144,
        networks: Networks = Networks(),
        policy: PolicyWidths = PolicyWidths(policy_channels=64),
        action_std: Rate = 0.25,
        samples: Positive = 1,
        dropout: Dropout = 0.5,
        align_crops: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        self.frames, self.focus_frames = frames, focus_frames
        self.action_std, self.samples, self.align_crops = action_std, samples, align_crops
        self.glance = ShiftedNet(networks.glance, num_classes, dropout=dropout)
        self.focus = ShiftedNet(networks.focus, num_classes, dropout=dropout)
        widths = policy.policy_channels, policy.policy_hidden
        self.policy = gaussian_policy(frames * self.glance.dim, self.map_side, *widths)

    # -- what it says of itself ------------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        if size == "paper":
            return {"patch_size": 144, **FULL_SIZE}
        return {
            "focus_frames": 8,
            "patch_size": resolution * 5 // 8,
            **tiny_networks(resolution),
            "policy_channels": 16,
            "policy_hidden": 64,
            "samples": 2,
            "dropout": 0.2,
            "align_crops": True,
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        parts: dict[str, dict[str, Any]] = {
            "glance": {
                "trained": ("glance",),
                "init": (InitFrom(f"pretrained:{published(self.glance.name, 'tsm')}", into="glance.backbone"),),
            },
            "focus": {
                "trained": ("focus",),
                "init": (InitFrom(f"pretrained:{self.focus.name}", into="focus.backbone"),),
            },
            "random": {
                "trained": ("focus",),
                "init": (
                    InitFrom("stage:glance", into="glance", take="glance"),
                    InitFrom("stage:focus", into="focus.backbone", take="focus.backbone"),
                ),
            },
            "policy": {"trained": ("policy",), "init": (InitFrom("stage:random"),)},
            "finetune": {"trained": ("focus.head",), "init": (InitFrom("stage:policy"),)},
        }
        schedules = _paper_schedules() if size == "paper" else _tiny_schedules()
        make = Stage if size == "paper" else tiny_stage
        return [make(name, settings={"phase": name}, **part, **schedules[name]) for name, part in parts.items()]

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        crops: Any = "shared" if self.align_crops else "own"
        glance = ClipRequest(self.frames, "glance", short="first")
        focus = ClipRequest(self.focus_frames, "focus", short="first", crop=crops)
        return {"glance": (glance,), "focus": (focus,)}.get(_phase(stage), (glance, focus))

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        """The default; and the same weights with a patch that needs no policy."""
        return [OperatingPoint("full"), *(OperatingPoint(f"patches={p}", {"patches": p}) for p in PATCHES[1:])]

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """The losses of the stage's phase (its setting `phase`; `random` where there is no stage).

        Glance and focus: cross entropy of one network on whole frames. Random and finetune: cross entropy of
        both networks' sum, with a random place per video or the policy's. Policy: PPO.

        Source: docs/methods/adafocus-v1.md#on-tsm.
        """
        return self.losses(_phase(self.stage), self.as_clips(inputs), self.labels(data_samples))

    def losses(
        self,
        phase: str,
        clips: Clips,
        target_B: Tensor,
        *,
        random_B2: Tensor | None = None,
        places_RB2: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses for given random places and the policy's given places; drawn where left out."""
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        if phase == "focus":
            return {"loss_focus": cross_entropy(self.look(clips["focus"], None), target_B)}
        if phase == "glance":
            return {"loss_glance": cross_entropy(self.see(clips["glance"])[1], target_B)}
        with torch.no_grad():
            maps_BEHW, glance_BC = self.see(clips["glance"])
        focus_BS3HW = self.normalise(clips["focus"])
        if phase == "policy":
            return self._policy_losses(focus_BS3HW, maps_BEHW, glance_BC, target_B, random_B2, places_RB2)
        if phase == "random":
            places_B2 = torch.rand(len(target_B), 2, device=glance_BC.device) if random_B2 is None else random_B2
        else:
            with torch.no_grad():
                places_B2 = self.choose(maps_BEHW)
        return {"loss_sum": cross_entropy(glance_BC + self.look(focus_BS3HW, places_B2), target_B)}

    def _policy_losses(
        self,
        focus_BS3HW: Tensor,
        maps_BEHW: Tensor,
        glance_BC: Tensor,
        target_B: Tensor,
        random_B2: Tensor | None = None,
        places_RB2: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """PPO with a single step: what a drawn place adds to the true class's probability over a random one.

        A batch gets one update, so the policy that acts is the one that is trained.
        """
        out_B12, value_B1, _ = self.policy(maps_BEHW[:, None])
        acts = Normal(torch.sigmoid(out_B12[:, 0]), self.action_std)
        if places_RB2 is None:
            places_RB2 = acts.sample(torch.Size((self.samples,))).clamp(0, 1)
        with torch.no_grad(), no_autocast(focus_BS3HW):
            random_B2 = torch.rand_like(places_RB2[0]) if random_B2 is None else random_B2
            usual_B = self._truth(focus_BS3HW, random_B2, glance_BC, target_B)
            gains = [self._truth(focus_BS3HW, drawn_B2, glance_BC, target_B) - usual_B for drawn_B2 in places_RB2]
            rewards_RB = torch.stack(gains)
        log_probs_RB = acts.log_prob(places_RB2).sum(-1)
        values_RB = value_B1[:, 0].expand_as(rewards_RB)
        entropies_B = acts.entropy().sum(-1)  # constant, as the deviation is
        losses = ppo_losses(log_probs_RB, log_probs_RB, values_RB, normalised(rewards_RB), entropies_B)
        return losses | {"reward": rewards_RB.mean()}

    def _truth(self, focus_BS3HW: Tensor, places_B2: Tensor, glance_BC: Tensor, target_B: Tensor) -> Tensor:
        """Probability of the true class (B,) with patches at these places."""
        scores_BC = at_least_float32(glance_BC + self.look(focus_BS3HW, places_B2)).softmax(-1)
        return scores_BC.gather(1, target_B[:, None])[:, 0]

    # -- evaluation ------------------------------------------------------------------------------

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits (B, C). `point` may hold `patches`: `random` and `centre` look there and run no policy.

        With a `generator` the place is drawn from the policy's Gaussian, or a random one anew.
        """
        focus_BS3HW = clips["focus"].all()
        maps_BEHW, glance_BC = self.see(clips["glance"].all())
        places_B2 = self._places(focus_BS3HW, maps_BEHW, point.get("patches", "learned"), generator)
        shape = (-1, self.focus_frames, -1)
        boxes = partial(crop_boxes, places_B2, self.patch_size, self.resolution)
        self.note_boxes("focus", range(self.focus_frames), lambda: boxes()[:, None].expand(shape))
        return glance_BC + self.look(focus_BS3HW, places_B2)

    def _places(
        self, focus_BS3HW: Tensor, maps_BEHW: Tensor, patches: str, generator: torch.Generator | None
    ) -> Tensor:
        """Where to look (B, 2)."""
        device = focus_BS3HW.device
        if patches == "centre":
            return torch.full((len(focus_BS3HW), 2), 0.5, device=device)
        if patches == "random":
            if generator is None:
                return scattered(focus_BS3HW[:, :1])[:, 0]
            return torch.rand(len(focus_BS3HW), 2, generator=generator, device=generator.device).to(device)
        if patches != "learned":
            raise unknown("patches", patches, PATCHES)
        mean_B2 = self.choose(maps_BEHW)
        if generator is None:
            return mean_B2
        noise_B2 = torch.randn(mean_B2.shape, generator=generator, device=generator.device).to(mean_B2)
        return (mean_B2 + self.action_std * noise_B2).clamp(0, 1)

    @component("glance", variant=lambda model: model.glance.name, side=lambda model: model.glance_side, steps=True)
    def see(self, clip_BT3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of a clip's frames on top of each other (B, T * D, h, w), and the glance's half of the sum (B, C)."""
        maps = self.glance.maps(self.shrink(self.normalise(clip_BT3HW.flatten(0, 1))), self.frames)
        return stacked(maps, self.frames), self.glance.logits(self.glance.vectors(maps), self.frames)

    @component("policy")
    def choose(self, maps_BEHW: Tensor) -> Tensor:
        """The Gaussian's mean (B, 2)."""
        return torch.sigmoid(self.policy.act(maps_BEHW[:, None])[0][:, 0])

    @component("focus", variant=lambda model: model.focus.name, side=lambda model: model.patch_size, steps=True)
    def look(self, clip_BS3HW: Tensor, places_B2: Tensor | None) -> Tensor:
        """The focus network's half of the sum (B, C), on one patch of all frames; on whole frames without places."""
        x_N3HW = clip_BS3HW.flatten(0, 1)
        if places_B2 is not None:
            x_N3HW = hard_crop(x_N3HW, places_B2.repeat_interleave(clip_BS3HW.shape[1], 0), self.patch_size)
        maps = self.focus.maps(self.normalise(x_N3HW), self.focus_frames)
        return self.focus.logits(self.focus.vectors(maps), self.focus_frames)


def _phase(stage: Stage | None) -> str:
    return "random" if stage is None else str(stage.settings.get("phase", "random"))


def _paper_schedules() -> dict[str, dict[str, Any]]:
    """The Something-Something commands with the learning rates that were meant; the policy's 51 epochs are the code's.

    Source: docs/methods/adafocus-v1.md#on-tsm, #learning-rates.
    """
    tsm: dict[str, Any] = {"epochs": 50, "batch_size": 64, "lr": 0.01, "weight_decay": 5e-4, "clip_grad": 20.0}
    tsm |= {"schedule": "step", "milestones": (20, 40)}
    backbone = (ParamGroup(("focus.backbone",), lr_mult=1e-3),)
    return {
        "glance": tsm,
        "focus": tsm,
        "random": {"epochs": 10, "batch_size": 64, "lr": 0.01, "weight_decay": 1e-4, "groups": backbone},
        "policy": {
            "epochs": 51,
            "batch_size": 64,
            "lr": 3e-4,
            "optimizer": "Adam",
            "schedule": "constant",
        },
        "finetune": {"epochs": 10, "batch_size": 32, "lr": 5e-4, "weight_decay": 1e-4},
    }


def _tiny_schedules() -> dict[str, dict[str, Any]]:
    """`tiny_stage` with these changes."""
    return {
        "glance": {"epochs": 8, "departures": TINY_DEPARTURES},
        "focus": {"epochs": 6, "departures": TINY_DEPARTURES},
        "random": {"epochs": 4, "lr": 2e-3, "departures": TINY_DEPARTURES},
        "policy": {
            "epochs": 12,
            "lr": 3e-3,
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "schedule": "constant",
            "departures": TINY_POLICY_DEPARTURES,
        },
        "finetune": {"epochs": 2, "lr": 1e-3, "departures": TINY_DEPARTURES},
    }
