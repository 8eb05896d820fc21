"""The contract every method fulfils: `EfficientRecognizer`, an mmaction2 recognizer.

    class MyMethod(EfficientRecognizer):
        def __init__(self, num_classes, resolution, ...): ...   # keyword settings, all JSON-able
        settings_for / recipe        what the tiny and the paper size are, and how they are trained
        loss                         training
        classify                     evaluation: executes only what it decides, through components

Ordinary mmengine configs may build it as `dict(type='MyMethod', num_classes=...)`: mmengine's Runner
calls `loss` and `predict` through mmaction2's `forward`.

Shapes: B videos, T frames, C classes (or channels where it says so), K exits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

import harness.compat.imports  # noqa: F401  (before mmaction)
from harness.contract.components import Call, Form
from harness.contract.declarations import EMPTY, ClipRequest, OperatingPoint, Stage, below
from harness.contract.exits import calibrate_thresholds, point_thresholds
from harness.contract.frames import Frames, as_frames
from harness.contract.groups import Positive, grouped, validated
from harness.contract.preprocessor import ClipPreprocessor
from harness.contract.segments import every_exit, until_sure
from harness.contract.trace import Trace
from harness.errors import UsageError

from mmaction.models.recognizers.base import BaseRecognizer
from mmaction.registry import MODELS

Clips = Mapping[str, Tensor]
"""Request name -> (B, T, 3, H, W), uint8 as decoded (or float, already normalised)."""

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


class EfficientRecognizer(BaseRecognizer):
    """Base class of all methods.

    A constructor's keywords are the method's settings. They are held against their types, and a dataclass among
    them is a group whose fields are settings (harness.contract.groups).

    Args:
        num_classes: C.
        resolution: Side of the square input in pixels; the card's, handed over by the harness.
        mean, std: Per-channel normalisation on the 0..255 scale; the card's.

    Attributes:
        exits: K, the number of points at which `infer` may stop; 0 for a method without exits.
        exit_frames: Frames that a prediction at each exit rests on (K,), or at the end of a method without exits (1,);
            empty where they are the clip's, or the method tells the trace itself.
        trace: Of the evaluation that is going on; None in training.
        forms: How components run where the harness wants another way than their functions.
        exit_score: How sure a prediction is at an exit, see `harness.contract.exits.exit_scores`.
        online: Whether `step` works.
    """

    exits: int = 0
    exit_frames: Sequence[int] = ()
    exit_score: str = "softmax"
    online: ClassVar[bool] = False
    test_settings: ClassVar[tuple[str, ...]] = ()
    """Settings that act at test time only: weights, stages and training clips are the same for all their values, so
    one training serves them all."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(EfficientRecognizer)]:  # mixins take settings too
            init = vars(base).get("__init__")
            if inspect.isfunction(init) and not hasattr(init, "validated"):
                base.__init__ = validated(grouped(init))  # type: ignore[misc]

    @validated
    @grouped
    def __init__(
        self,
        num_classes: Positive,
        *,
        resolution: Positive = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        # BaseRecognizer builds one backbone from a config; ours have several, so its builder is skipped.
        preprocessor = MODELS.build(dict(data_preprocessor)) if data_preprocessor else ClipPreprocessor()
        BaseModel.__init__(self, data_preprocessor=preprocessor)
        self.num_classes = num_classes
        self.resolution = resolution
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.stage: Stage | None = None
        self.progress = 0.0
        self.trace: Trace | None = None
        self.forms: Mapping[Call, Form] = {}
        self._eval_prefixes: tuple[str, ...] = ()

    # -- what a method says of itself ------------------------------------------------------------

    @classmethod
    def settings_for(cls, size: str, resolution: int) -> dict[str, Any]:
        """Constructor settings of `size` (tiny or paper), without num_classes, resolution, mean, std."""
        raise NotImplementedError(f"{cls.__name__} must say what its sizes are (settings_for)")

    def recipe(self, size: str) -> Sequence[Stage]:
        """The default training recipe at `size`; called on the built recognizer, so settings are known.

        The last stage without `method` yields the weights that are evaluated.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it is trained (recipe)")

    def clip_requests(self, point: Mapping[str, Any] = EMPTY, *, stage: Stage | None = None) -> tuple[ClipRequest, ...]:
        """The clips wanted at an operating point, or by a training stage."""
        raise NotImplementedError(f"{type(self).__name__} must say which clips it wants (clip_requests)")

    def operating_points(self, budgets: Sequence[float] = ()) -> Sequence[OperatingPoint]:
        """All points of the test-time knobs; the first is the default. `budgets` are the shares of the
        full cost at which exits are to be calibrated.
        """
        points = [OperatingPoint("full")]
        if self.exits:
            points += [OperatingPoint(f"exit@{b:.2f}", knob="exit", value=b, budget=b) for b in budgets]
        return points

    # -- training --------------------------------------------------------------------------------

    def loss(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> dict[str, Tensor]:
        """Losses of a batch; keys that hold `loss` are summed, the others logged (mmengine's rule)."""
        raise NotImplementedError

    def set_stage(self, stage: Stage) -> None:
        """Enter a training stage: what is trained learns, everything else is frozen and in eval mode."""
        self.stage = stage
        names = [name for name, _ in self.named_modules()] + [name for name, _ in self.named_parameters()]
        for prefix in (*stage.trained, *stage.eval_modules, *(m for g in stage.groups for m in g.modules)):
            if prefix and not any(below(name, prefix) for name in names):
                raise UsageError(f"stage {stage.name!r} names {prefix!r}, which {type(self).__name__} does not have")
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(below(name, p) for p in stage.trained))
        whole = [
            name
            for name, module in self.named_modules()
            if name
            and not any(below(p, name) or below(name, p) for p in stage.trained)
            and not isinstance(module, nn.ModuleList)
        ]
        self._eval_prefixes = (*stage.eval_modules, *whole)
        self.train(self.training)

    def set_progress(self, epoch: int, epochs: int) -> None:
        """Called at each epoch's start with the 0-based epoch (temperatures, ramps)."""
        self.progress = epoch / max(1, epochs)

    def train(self, mode: bool = True) -> EfficientRecognizer:
        """As in torch, but frozen parts stay in eval mode (mmengine calls this every epoch)."""
        super().train(mode)
        if mode:
            for name, module in self.named_modules():
                if any(below(name, p) for p in self._eval_prefixes):
                    module.training = False
        return self

    def init_weights(self) -> None:
        """Nothing to do: weights are drawn at construction, then loaded by the harness (Runner calls this)."""

    # -- evaluation ------------------------------------------------------------------------------

    def infer(
        self,
        clips: Mapping[str, Tensor | Frames],
        point: Mapping[str, Any] = EMPTY,
        *,
        trace: Trace,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Unnormalised logits (B, C); executes only what the method decides, and tells `trace` of it.

        Args:
            clips: Of every clip request, uint8 (B, T, 3, H, W) or Frames.
            point: Settings of an operating point; of a method with exits it may hold `thresholds` (K,), or `exit_at`,
                the exit forced on every video.
            generator: Only in the mode with test-time randomness (None: deterministic argmax).

        This is the harness's side; a method has `classify`, or `begin` and `segment`.
        """
        thresholds = point_thresholds(point, self.exits)
        with self.telling(trace):
            if thresholds is None:
                logits = self.classify(as_frames(clips), point, generator)
            else:
                logits = until_sure(self, as_frames(clips), thresholds, trace, generator)
        if self.exit_frames:
            left_at = -1 if trace.exit_step is None else trace.exit_step
            used = np.asarray(self.exit_frames, dtype=np.float64)[left_at]
            trace.frames_used = np.broadcast_to(used, (trace.videos,))
        return logits

    def infer_exits(self, clips: Mapping[str, Tensor | Frames], *, trace: Trace) -> Tensor:
        """Logits at all exits (B, K, C), for calibration; only for methods with exits."""
        if not self.exits:
            raise UsageError(f"{type(self).__name__} has no exits")
        with self.telling(trace):
            return every_exit(self, as_frames(clips))

    @contextmanager
    def telling(self, trace: Trace) -> Iterator[None]:
        """Components tell `trace` of their work meanwhile."""
        before, self.trace = self.trace, trace
        try:
            yield
        finally:
            self.trace = before

    @property
    def training_parts(self) -> bool:
        """Whether parts that only the losses need are to run as well, to be counted."""
        return self.trace is not None and self.trace.training_parts

    def classify(
        self, clips: Mapping[str, Frames], point: Mapping[str, Any] = EMPTY, generator: torch.Generator | None = None
    ) -> Tensor:
        """Unnormalised logits (B, C) of a method without exits; of one with exits, all its segments as one."""
        return self.segment(self.begin(clips, generator), 0, max(self.exits, 1) - 1)[1]

    def begin(self, clips: Mapping[str, Frames], generator: torch.Generator | None = None) -> Any:
        """The state before the first segment: tensors and Frames, rows first (see harness.contract.segments)."""
        raise NotImplementedError(f"{type(self).__name__} has neither classify nor segments (begin, segment)")

    def segment(self, state: Any, first: int, last: int) -> tuple[Any, Tensor]:
        """Run the segments `first` .. `last` as one on the videos still there, whose state is given.

        Returns:
            Their state afterwards, and the logits (B, C) of exit `last`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no segments (begin, segment)")

    def note_boxes(self, label: str, steps: Any, boxes_BK4: Callable[[], Tensor], videos: Any = None) -> None:
        """Tell where was looked (`Trace.note_boxes`); `boxes_BK4` is called only where somebody asks."""
        if self.trace is not None and self.trace.details:
            self.trace.note_boxes(label, steps, boxes_BK4(), videos)

    def exit_settings(self, step: int) -> dict[str, Any]:
        """Point settings that stop every video at exit `step`; the harness measures each exit's cost so."""
        return {"exit_at": step}

    def calibrate(self, exit_logits_NKC: np.ndarray, exit_costs_K: np.ndarray, budget: float) -> dict[str, Any]:
        """Point settings that meet `budget` (share of the full cost) on the calibration split.

        Budgets in time need thresholds, which the harness chooses (harness.measure.segmentation).
        """
        thresholds = calibrate_thresholds(exit_logits_NKC, exit_costs_K, budget, score=self.exit_score)
        return {"thresholds": [float(t) for t in thresholds]}

    def step(self, frame: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Online mode: one frame (B, 3, H, W) in, logits so far (B, C) and the new state out."""
        raise UsageError(f"{type(self).__name__} does not work online")

    # -- mmaction2's interface -------------------------------------------------------------------

    def extract_feat(self, inputs: Clips | Tensor, **kwargs: Any) -> Tensor:
        """Logits of the default point (mmaction2's `mode='tensor'`)."""
        clips = self.as_clips(inputs)
        return self.infer(clips, trace=Trace(next(iter(clips.values())).shape[0]))

    def _forward(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        return self.extract_feat(inputs)

    def predict(self, inputs: Clips | Tensor, data_samples: Sequence[Any], **kwargs: Any) -> Sequence[Any]:
        """Fill each sample's `pred_score` (softmax) and `pred_label`, as mmaction2's tools expect."""
        scores = self.extract_feat(inputs).float().softmax(-1)
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_pred_score(score)
            sample.set_pred_label(score.argmax())
        return data_samples

    def as_clips(self, inputs: Clips | Tensor) -> Clips:
        """Accept what mmaction2's pipelines give: a (B, T, 3, H, W) tensor for a single request."""
        if isinstance(inputs, Mapping):
            return inputs
        if inputs.ndim != 5 or inputs.shape[2] != 3:
            raise UsageError(f"expected clips (B, T, 3, H, W), got {tuple(inputs.shape)}; use FormatShape NCHW")
        (request,) = self.clip_requests()
        return {request.name: inputs}

    def normalise(self, frames: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) to normalised float; only frames that are consumed are converted.

        Floats pass unchanged: they come normalised.
        """
        if frames.dtype != torch.uint8:
            return frames
        return frames.to(self.std.dtype).sub_(self.mean).div_(self.std)

    def labels(self, data_samples: Sequence[Any]) -> Tensor:
        """Class index per video (B,), the first where there are several."""
        return torch.stack([s.gt_label.reshape(-1)[0] for s in data_samples]).to(self.mean.device)
