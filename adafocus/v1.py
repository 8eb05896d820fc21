"""AdaFocus V1 (ICCV 2021): a policy learnt by reinforcement says where a deep network looks in each frame.

The policy sees only the light network's maps, so all places are known before the first patch is cut out,
and all patches go through the deep network as one batch. V1+ has a second policy, which says whether a
frame deserves a patch at all; where it does not, none is computed.

    bench.py run --methods adafocus-v1,adafocus-v1-plus --datasets glyphs

Shapes: B videos, T frames, N = B * T, D features, A cells of the grid, C classes, P the patch's side.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from adafocus.glance_and_focus import GlanceAndFocus
from adafocus.policy import cell_places, grid_policy, scattered
from adafocus.rewards import Reward, keep_rewards, patch_rewards
from adafocus.settings import FULL_SIZE, Networks, PolicyWidths, tiny_networks
from harness.contract.components import component
from harness.contract.declarations import EMPTY, ClipRequest, InitFrom, OperatingPoint, ParamGroup, Stage, tiny_stage
from harness.contract.frames import Frames
from harness.contract.groups import Dropout, Positive, Probability, Weight, settings
from harness.contract.recognizer import Clips
from harness.errors import unknown
from harness.layers.backbones import build_backbone
from harness.layers.crop import crop_boxes, hard_crop
from harness.layers.gumbel import decide
from harness.layers.losses import every_step
from harness.layers.ppo import discounted_returns, normalised, ppo_losses
from harness.layers.precision import no_autocast
from harness.layers.recurrent import RecurrentClassifier

from mmaction.registry import MODELS

CARD = {
    "name": "adafocus-v1",
    "class": "AdaFocusV1",
    "title": "AdaFocus V1",
    "paper": "Adaptive Focus for Efficient Video Recognition (arXiv 2105.03245)",
    "year": 2021,
    "adapts": ["space"],
    "fidelity": "A",
    "source": "https://github.com/blackfeather-wang/AdaFocus",
    "authors": "adafocus.authors.v1",
    "summary": "A patch per frame, placed on a grid by a recurrent policy that learns by reinforcement (PPO)",
    "version": 1,
    "sizes": ["tiny", "paper"],
    "knobs": {"patch_size": "train", "grid": "train", "patches": "test"},
    "settings": {},
    "variants": {
        "adafocus-v1-plus": {
            "title": "AdaFocus V1+ (reconstruction)",
            "adapts": ["space", "time"],
            "fidelity": "C",
            "summary": "AdaFocus V1 with a second policy that skips frames; rebuilt, as its authors released none",
            "knobs": {"patch_size": "train", "grid": "train", "skip_cost": "train", "patches": "test"},
            "settings": {"skip": True},
        },
    },
}

PHASES = ("glance", "focus", "random", "policy", "finetune", "skip")
PATCHES = ("learned", "random", "centre")


@settings
class Reinforced:
    """Learning to place patches by reinforcement (PPO)."""

    reward: Reward = "random"
    """What a patch is worth, see `patch_rewards`."""
    gamma: Probability = 0.7
    """Discount of later rewards."""
    entropy_weight: Weight = 0.01
    """Of the bonus for an undecided policy."""
    samples: Positive = 1
    """Trajectories drawn per video and update (the authors' code: 1)."""


@settings
class Skipping:
    """V1+: a second policy, which says whether a frame gets a patch."""

    skip: bool = False
    """Have it."""
    skip_cost: Weight = 0.02
    """What a patch costs, as a probability: it is worth keeping where it raises p by more."""


class _State(NamedTuple):
    """What online work carries from frame to frame."""

    policy_BH: Tensor | None = None
    skip_BH: Tensor | None = None
    classifier_BH: Tensor | None = None


@MODELS.register_module()
class AdaFocusV1(GlanceAndFocus):
    """AdaFocus V1 and, with `skip`, V1+.

    Where code and paper disagree, the code is followed: stochastic gradient descent without Nesterov's
    momentum (paper: with), and in the last stage only the classifier is fine-tuned (as in V1's appendix;
    V2's Table 1 says the focus network too).

    Args:
        num_classes: C.
        frames: T.
        patch_size: P in pixels.
        networks: See Networks.
        grid: Places per axis, from border to border.
        policy: Width of the policy's 1x1 convolution, and of its linear layer and GRU.
        classifier_hidden, dropout: Of the GRU classifier.
        head_dropout: Dropout before `glance_head`; both heads serve only to train the backbones.
        learning: See Reinforced.
        skipping: See Skipping.

    Source: docs/methods/adafocus-v1.md.
    """

    online = True

    def __init__(
        self,
        num_classes: int,
        *,
        frames: Positive = 16,
        patch_size: Positive = 128,
        networks: Networks = Networks(glance_resize="nearest"),
        grid: Annotated[int, Ge(2), Le(64)] = 7,
        policy: PolicyWidths = PolicyWidths(policy_channels=32),
        classifier_hidden: Positive = 1024,
        dropout: Dropout = 0.8,
        head_dropout: Dropout = 0.2,
        learning: Reinforced = Reinforced(),
        skipping: Skipping = Skipping(),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, patch_size=patch_size, networks=networks, **kwargs)
        self.frames, self.grid, self.learning, self.skipping = frames, grid, learning, skipping
        self.given: dict[str, Any] = {
            "frames": frames, "patch_size": patch_size, "grid": grid, "head_dropout": head_dropout,
            "classifier_hidden": classifier_hidden, "dropout": dropout,
            **{name: value for group in (networks, policy, learning) for name, value in asdict(group).items()},
        }

        self.glance = build_backbone(networks.glance)
        self.focus = build_backbone(networks.focus)
        self.glance_head = self.frame_head(self.glance.dim, head_dropout)
        self.focus_head = nn.Linear(self.focus.dim, num_classes)
        sizes = self.glance.dim, self.map_side, policy.policy_channels, policy.policy_hidden
        self.policy = grid_policy(*sizes, grid * grid)
        self.skip_policy = grid_policy(*sizes, 2) if skipping.skip else None
        dim = self.glance.dim + self.focus.dim
        self.classifier = RecurrentClassifier(dim, num_classes, hidden=classifier_hidden, dropout=dropout)

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
            "classifier_hidden": 128,
            "dropout": 0.2,
            "samples": 2,
        }

    def recipe(self, size: str) -> Sequence[Stage]:
        paper = size == "paper"
        if self.skip_policy is not None:
            phase: dict[str, Any] = {
                "trained": ("skip_policy",),
                "settings": {"phase": "skip"},
                "init": self._from_v1(size),
            }
            if paper:
                return [Stage("skip", **phase, **_paper_schedules()["policy"] | {"epochs": 10})]
            return [tiny_stage("skip", **phase, **_tiny_schedules()["policy"] | {"epochs": 10})]
        glance = InitFrom(f"pretrained:{self.networks.glance}", into="glance")
        focus = InitFrom(f"pretrained:{self.networks.focus}", into="focus")
        parts: dict[str, dict[str, Any]] = {
            "glance": {"trained": ("glance", "glance_head"), "init": (glance,)},
            "focus": {"trained": ("focus", "focus_head"), "init": (focus,)},
            "random": {
                "trained": ("focus", "classifier"),
                "init": (InitFrom("stage:glance"), *(InitFrom("stage:focus", p, p) for p in ("focus", "focus_head"))),
            },
            "policy": {"trained": ("policy",), "init": (InitFrom("stage:random"),)},
            "finetune": {"trained": ("classifier",), "init": (InitFrom("stage:policy"),)},
        }
        schedules = _paper_schedules() if paper else _tiny_schedules()
        make = Stage if paper else tiny_stage
        return [make(n, settings={"phase": n}, **part, **schedules[n]) for n, part in parts.items()]

    def _from_v1(self, size: str) -> tuple[InitFrom, ...]:
        """V1's artifact, trained with what of our settings is not V1's default at this size."""
        usual = _defaults() | self.settings_for(size, self.resolution)
        changed = {name: value for name, value in self.given.items() if value != usual[name]}
        parts = ("glance", "glance_head", "focus", "focus_head", "policy", "classifier")
        return tuple(InitFrom("method:adafocus-v1", part, part, changed) for part in parts)

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        return (ClipRequest(self.frames),)

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        """The default; and the same weights with patches that need no policy."""
        return [OperatingPoint("full"), *(OperatingPoint(f"patches={p}", {"patches": p}) for p in PATCHES[1:])]

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """The losses of the stage's phase (its setting `phase`; `random` where there is no stage).

        Glance and focus: cross entropy on the mean of whole frames' logits. Random and finetune: cross
        entropy at every step, with random patches or the policy's. Policy and skip: PPO.

        Source: docs/methods/adafocus-v1.md#losses, #training, #v1-plus for skip.
        """
        phase = "random" if self.stage is None else self.stage.settings.get("phase", "random")
        return self.losses(phase, self.normalise(self.as_clips(inputs)["frames"]), self.labels(data_samples))

    def losses(
        self,
        phase: str,
        x_BT3HW: Tensor,
        target_B: Tensor,
        *,
        random_BT2: Tensor | None = None,
        cells_SBT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of normalised frames, for given random places and the policy's given cells; drawn where left out."""
        if phase == "glance":
            logits = self.glance_head(self.glance(self.shrink(x_BT3HW.flatten(0, 1))))
            return {"loss_glance": F.cross_entropy(logits.unflatten(0, x_BT3HW.shape[:2]).mean(1), target_B)}
        if phase == "focus":
            logits = self.focus_head(self.focus(x_BT3HW.flatten(0, 1)))
            return {"loss_focus": F.cross_entropy(logits.unflatten(0, x_BT3HW.shape[:2]).mean(1), target_B)}
        with torch.no_grad():
            maps_BTDHW, glance_BTD = (x.unflatten(0, x_BT3HW.shape[:2]) for x in self.see(x_BT3HW.flatten(0, 1)))
        if phase == "policy":
            return self._policy_losses(x_BT3HW, maps_BTDHW, glance_BTD, target_B, random_BT2, cells_SBT)
        if phase == "skip":
            return self._skip_losses(x_BT3HW, maps_BTDHW, glance_BTD, target_B)
        if phase not in PHASES:
            raise unknown("phase", phase, PHASES)
        if phase == "random":
            focus_BTD = self._look(x_BT3HW, self._anywhere(x_BT3HW) if random_BT2 is None else random_BT2)
        else:
            with torch.no_grad():
                focus_BTD = self._look(x_BT3HW, cell_places(self.policy.act(maps_BTDHW)[0].argmax(-1), self.grid))
        return {"loss_steps": every_step(self.classifier(torch.cat((glance_BTD, focus_BTD), dim=2)), target_B)}

    def _policy_losses(
        self,
        x_BT3HW: Tensor,
        maps_BTDHW: Tensor,
        glance_BTD: Tensor,
        target_B: Tensor,
        random_BT2: Tensor | None = None,
        cells_SBT: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """PPO on sampled cells. A batch gets one update, so the policy that acts is the one that is trained."""
        out_BTA, value_BT, _ = self.policy(maps_BTDHW)
        acts = Categorical(logits=out_BTA)
        if cells_SBT is None:
            cells_SBT = acts.sample(torch.Size((self.learning.samples,)))
        random_BTD = None
        with torch.no_grad(), no_autocast(x_BT3HW):
            if self.learning.reward == "random":
                random_BTD = self._look(x_BT3HW, self._anywhere(x_BT3HW) if random_BT2 is None else random_BT2)
            rewards = []
            for cells_BT in cells_SBT:
                focus_BTD = self._look(x_BT3HW, cell_places(cells_BT, self.grid))
                features = glance_BTD, focus_BTD, random_BTD
                rewards.append(patch_rewards(self.learning.reward, self.classifier, *features, target_B))
        return self._ppo(acts, cells_SBT, value_BT, torch.stack(rewards))

    def _skip_losses(
        self, x_BT3HW: Tensor, maps_BTDHW: Tensor, glance_BTD: Tensor, target_B: Tensor
    ) -> dict[str, Tensor]:
        """PPO on sampled decisions to keep or skip V1's own patches."""
        assert self.skip_policy is not None
        out_BT2, value_BT, _ = self.skip_policy(maps_BTDHW)
        acts = Categorical(logits=out_BT2)
        keep_SBT = acts.sample(torch.Size((self.learning.samples,)))
        with torch.no_grad(), no_autocast(x_BT3HW):
            focus_BTD = self._look(x_BT3HW, cell_places(self.policy.act(maps_BTDHW)[0].argmax(-1), self.grid))
            rewards = [
                keep_rewards(self.classifier, glance_BTD, focus_BTD, keep_BT, self.skipping.skip_cost, target_B)
                for keep_BT in keep_SBT
            ]
        losses = self._ppo(acts, keep_SBT, value_BT, torch.stack(rewards))
        return losses | {"kept": keep_SBT.float().mean()}

    def _ppo(self, acts: Categorical, taken_SBT: Tensor, value_BT: Tensor, rewards_SBT: Tensor) -> dict[str, Tensor]:
        """Losses of S trajectories; the returns are normalised over all of them and all steps together."""
        returns_TSB = normalised(discounted_returns(rewards_SBT.permute(2, 0, 1), self.learning.gamma))
        log_probs_SBT = acts.log_prob(taken_SBT)
        losses = ppo_losses(
            log_probs_SBT,
            log_probs_SBT,
            value_BT.expand_as(rewards_SBT),
            returns_TSB.permute(1, 2, 0),
            acts.entropy(),
            entropy_weight=self.learning.entropy_weight,
        )
        return losses | {"reward": rewards_SBT.mean()}

    def _look(self, x_BT3HW: Tensor, actions_BT2: Tensor) -> Tensor:
        """Features (B, T, D) of one patch per frame."""
        return self.look(x_BT3HW.flatten(0, 1), actions_BT2.flatten(0, 1)).unflatten(0, x_BT3HW.shape[:2])

    @staticmethod
    def _anywhere(x_BT3HW: Tensor) -> Tensor:
        """Random places (B, T, 2)."""
        return torch.rand(*x_BT3HW.shape[:2], 2, device=x_BT3HW.device)

    # -- evaluation ------------------------------------------------------------------------------

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        """Logits (B, C) after the last frame.

        `point` may hold `patches`: `random` and `centre` look there and run no policy. With a `generator`
        cells, random places and decisions to skip are drawn.
        """
        return self._process(clips["frames"].all(), _State(), point, generator)[0]

    def step(self, frame: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return self._process(frame[:, None], state or _State(), EMPTY, None)

    def _process(
        self, frames: Tensor, state: _State, point: Mapping[str, Any], generator: torch.Generator | None
    ) -> tuple[Tensor, _State]:
        """All of `frames` (B, t, 3, H, W) after those that `state` knows; logits (B, C) and the state afterwards."""
        maps_BTDHW, glance_BTD = (x.unflatten(0, frames.shape[:2]) for x in self.see(frames.flatten(0, 1)))
        actions_BT2, policy_BH = self._places(frames, maps_BTDHW, state, point, generator)
        if self.skip_policy is None:
            skip_BH, focus_BTD = None, self._look(frames, actions_BT2)
            self.note_boxes("focus", range(frames.shape[1]), lambda: self._boxes(actions_BT2))
        else:
            out_BT2, skip_BH = self.choose_kept(maps_BTDHW, state.skip_BH)
            kept_BT = decide(out_BT2, generator).bool().cpu().numpy()
            focus_BTD = self._look_at_kept(frames, actions_BT2, kept_BT)
        states_BTH = self.remember(torch.cat((glance_BTD, focus_BTD), dim=2), state.classifier_BH)
        return self.conclude(states_BTH[:, -1]), _State(policy_BH, skip_BH, states_BTH[:, -1])

    def _places(
        self,
        frames: Tensor,
        maps_BTDHW: Tensor,
        state: _State,
        point: Mapping[str, Any],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Where to look (B, T, 2), and the policy's state afterwards."""
        patches = point.get("patches", "learned")
        if patches not in PATCHES:
            raise unknown("patches", patches, PATCHES)
        if patches == "centre":
            return torch.full((*frames.shape[:2], 2), 0.5, device=frames.device), None
        if patches == "random":
            if generator is None:
                return scattered(frames), None
            drawn = torch.rand(*frames.shape[:2], 2, generator=generator, device=generator.device)
            return drawn.to(frames.device), None
        out_BTA, policy_BH = self.choose(maps_BTDHW, state.policy_BH)
        return cell_places(decide(out_BTA, generator), self.grid), policy_BH

    def _look_at_kept(self, frames: Tensor, actions_BT2: Tensor, kept_BT: np.ndarray) -> Tensor:
        """Vectors (B, T, D) of the kept frames' patches; zeros for the others, which are not computed."""
        videos, steps = kept_BT.nonzero()
        rows = torch.from_numpy(kept_BT.reshape(-1).nonzero()[0]).to(frames.device)
        focus_ND = torch.zeros(kept_BT.size, self.focus.dim, device=frames.device, dtype=self.mean.dtype)
        if len(rows):
            seen = self.look(frames.flatten(0, 1)[rows], actions_BT2.flatten(0, 1)[rows], videos=videos)
            focus_ND.index_copy_(0, rows, seen.to(focus_ND.dtype))
        if self.trace is not None:
            self.trace.note_decisions("keep", kept_BT)
        at = steps[:, None]
        self.note_boxes("focus", at, lambda: self._boxes(actions_BT2).flatten(0, 1)[rows][:, None], videos)
        return focus_ND.unflatten(0, kept_BT.shape)

    def _boxes(self, actions_BT2: Tensor) -> Tensor:
        return crop_boxes(actions_BT2, self.patch_size, self.resolution)

    @component("policy", steps=True)
    def choose(self, maps_BTDHW: Tensor, state_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of the cells (B, T, A), and the policy's state afterwards."""
        return self.policy.act(maps_BTDHW, state_BH)

    @component("skip policy", steps=True)
    def choose_kept(self, maps_BTDHW: Tensor, state_BH: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of skipping and keeping (B, T, 2), and the second policy's state afterwards."""
        assert self.skip_policy is not None
        return self.skip_policy.act(maps_BTDHW, state_BH)

    @component("focus", variant=lambda model: model.networks.focus, side=lambda model: model.patch_size)
    def look(self, x_N3HW: Tensor, actions_N2: Tensor) -> Tensor:
        """Vectors (N, D) of the patches at these places, on whole pixels."""
        return self.focus(self.normalise(hard_crop(x_N3HW, actions_N2, self.patch_size)))

    @component("classifier", steps=True)
    def remember(self, features_BTD: Tensor, state_BH: Tensor | None) -> Tensor:
        """The classifier's states (B, T, H)."""
        return self.classifier.roll(features_BTD, state_BH)

    @component("head", fast=False)
    def conclude(self, state_BH: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classifier.classify(state_BH)


def _defaults() -> dict[str, Any]:
    """Constructor settings of V1 and V1+, and their default values."""
    return {
        name: p.default
        for name, p in inspect.signature(AdaFocusV1.__init__).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _paper_schedules() -> dict[str, dict[str, Any]]:
    """The ActivityNet command (docs/methods/adafocus-v1.md#training); the code's loop trains the policy 51 epochs."""
    descent = {"batch_size": 64, "weight_decay": 1e-4}
    return {
        "glance": {"epochs": 15, "lr": 0.01, **descent},
        "focus": {"epochs": 15, "lr": 0.01, **descent},
        "random": {"epochs": 50, "lr": 5e-4, "groups": (ParamGroup(("classifier",), lr_mult=100.0),), **descent},
        "policy": {"epochs": 51, "lr": 3e-4, "batch_size": 64, "optimizer": "Adam", "schedule": "constant"},
        "finetune": {"epochs": 10, "lr": 5e-3, **descent},
    }


def _tiny_schedules() -> dict[str, dict[str, Any]]:
    common = "small networks; AdamW with one-cycle schedule and gradient clipping at 5 (paper: SGD, cosine)"
    sampled = "one-cycle schedule, gradient clipping at 5, two trajectories per update (paper: none of these)"
    policy = {"optimizer": "Adam", "weight_decay": 0.0, "warmup": 0.1, "departures": (sampled,)}
    return {
        "glance": {"epochs": 6, "departures": (common,)},
        "focus": {"epochs": 4, "departures": (common,)},
        "random": {"epochs": 10, "departures": (common,)},
        "policy": {"epochs": 20, **policy},
        "finetune": {"epochs": 5, "lr": 2e-3, "departures": (common,)},
    }
