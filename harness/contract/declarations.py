"""The data types of the contract between a method and the harness; plain Python, no torch.

A method says what it wants to see (`ClipRequest`), how it is trained (`Stage`), at which settings it
can be evaluated (`OperatingPoint`); `harness.contract.recognizer` holds the class that uses them and
`harness.contract.trace` what an evaluation forward reports about the work it did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from harness.contract.groups import Positive, Probability, Rate, Weight, check_fields
from harness.errors import UsageError

EMPTY: Mapping[str, Any] = MappingProxyType({})

ENGINES = ("eager", "compiled", "graphs")
"""How components run (harness.engine.forms): as they are; by torch.compile, weights frozen and batch norms folded into
convolutions; or as CUDA graphs for fixed numbers of rows."""


@dataclass(frozen=True)
class ClipRequest:
    """One list of frames a method wants from every video.

    The dataset card, not the method, fixes decoding, resize, crop family, flips and normalisation.
    """

    frames: int
    """T, the number of frames."""
    name: str = "frames"
    """Key of the clip in the batch: `clips[name]` is uint8, (B, T, 3, H, W)."""
    sampler: Literal["segments", "uniform", "subset"] = "segments"
    """`segments`: TSN's integer segments (docs/data.md#frames); `uniform`: Uni-AdaFocus's real-valued
    segments (docs/data.md#frames); `subset`: one frame out of each run of `group` frames of `subset_of`,
    random in training, `group // 2` at test."""
    subset_of: str | None = None
    """Name of the request that `subset` draws from; its frames must be `group` times these."""
    group: int = 1
    """Length of the runs that `subset` draws from."""
    short: Literal["repeat-last", "first"] = "repeat-last"
    """What `segments` does with a video of fewer than T frames (`first`: V1-TSM, docs/data.md#frames)."""
    crop: Literal["shared", "own"] = "shared"
    """`own`: an own random crop and flip in training (the two-list repositories, docs/data.md#crops)."""
    resolution: int | None = None
    """Side in pixels after the card's crop; None keeps the card's (X3D's glance wants 160)."""

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UsageError(f"clip request {self.name!r}: frames must be at least 1, not {self.frames}")
        if (self.sampler == "subset") != (self.subset_of is not None):
            raise UsageError(f"clip request {self.name!r}: sampler 'subset' and subset_of go together")


@dataclass(frozen=True)
class InitFrom:
    """Where a stage's weights come from, before it trains.

    `source` is `pretrained:BACKBONE` (stills of an embedded set, ImageNet weights of `--weights-dir`),
    `stage:NAME` (an earlier stage of the same recipe) or `method:NAME` (the last stage of another
    method, trained once and shared by everyone who asks for it with the same settings).
    """

    source: str
    into: str = ""
    """Prefix of this recognizer's tensors that are filled; empty for the whole model."""
    take: str = ""
    """Prefix of the source's tensors that are read, replaced by `into`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For `method:NAME`: settings of that method that differ from its defaults."""

    def __post_init__(self) -> None:
        check_fields(self, "init")
        kind = self.source.partition(":")[0]
        if kind not in ("pretrained", "stage", "method"):
            raise UsageError(f"init source {self.source!r}: expected pretrained:BACKBONE, stage:NAME or method:NAME")


@dataclass(frozen=True)
class ParamGroup:
    """Optimizer settings of the parameters below some module prefixes (longest prefix wins)."""

    modules: tuple[str, ...]
    lr_mult: Weight = 1.0
    decay_mult: Weight = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "group")


@dataclass(frozen=True)
class Stage:
    """One step of a training recipe, as data."""

    name: str
    epochs: Positive
    batch_size: Positive
    lr: Rate
    optimizer: Literal["SGD", "AdamW", "Adam"] = "SGD"
    weight_decay: Weight = 0.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    """SGD only."""
    schedule: Literal["cosine", "onecycle", "step", "constant"] = "cosine"
    """`cosine`: per epoch, to 0; `onecycle`: per iteration, `warmup` of all iterations up, then cosine
    to 0; `step`: x0.1 at `milestones` (epochs)."""
    warmup: Probability = 0.2
    milestones: tuple[Positive, ...] = ()
    clip_grad: Rate | None = None
    """Largest L2 norm of all gradients together."""
    groups: tuple[ParamGroup, ...] = ()
    trained: tuple[str, ...] = ("",)
    """Module prefixes that learn; all other parameters are frozen and their modules stay in eval mode."""
    eval_modules: tuple[str, ...] = ()
    """Trained or not, these stay in eval mode too (fixed batch-norm statistics, no dropout)."""
    init: tuple[InitFrom, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Handed to the recognizer's `set_stage` (for example which loss or which patches to use)."""
    method: str | None = None
    """The method this stage trains instead (`tsn` for AR-Net's backbones); None trains the recognizer.
    A stage with `method` becomes that method's own artifact, shared with everyone who needs it."""
    method_settings: Mapping[str, Any] = field(default_factory=dict)
    views_per_epoch: Positive = 1
    """Training samples drawn per video and epoch."""
    departures: tuple[str, ...] = ()
    """Where this stage leaves the paper; shown in the record and the report."""

    def __post_init__(self) -> None:
        check_fields(self, "stage")


def tiny_stage(name: str, **changes: Any) -> Stage:
    """A stage as the tiny sizes train: AdamW, one cycle, 32 videos (docs/embedded-sets.md#recipes); `changes` win."""
    common: dict[str, Any] = {
        "epochs": 10,
        "batch_size": 32,
        "lr": 4e-3,
        "optimizer": "AdamW",
        "weight_decay": 0.02,
        "schedule": "onecycle",
        "clip_grad": 5.0,
    }
    return Stage(name, **(common | changes))


@dataclass(frozen=True)
class OperatingPoint:
    """A setting of the test-time knobs: one point of a method's accuracy-over-cost curve."""

    name: str
    """Unique within the method: `full`, `frames=4`, `exit@0.50`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What `infer` and `clip_requests` read. Empty for the default point."""
    knob: str | None = None
    """The knob this point belongs to: points of one knob are drawn as one curve."""
    value: float | None = None
    """The knob's value."""
    budget: float | None = None
    """Share of the full cost to calibrate for on the calibration split; `settings` then come from
    `calibrate` and are stored with the record."""


def frame_points(frames: int, others: Iterable[int]) -> list[OperatingPoint]:
    """The points of a method whose knob is the number of frames; `frames` is its default."""
    return [
        OperatingPoint("full", knob="frames", value=frames),
        *(OperatingPoint(f"frames={n}", {"frames": n}, knob="frames", value=n) for n in others if n != frames),
    ]


@dataclass(frozen=True)
class MethodCard:
    """What is known of a method without importing it: the literal `CARD` at the top of its file."""

    name: str
    cls: str
    """Class name, registered in mmaction2's MODELS on import."""
    module: str
    title: str
    paper: str
    year: int
    adapts: tuple[str, ...]
    """Any of space, time, sample, resolution, channels; empty for a static method."""
    fidelity: str
    """A code-exact, B model exact but schedule partly unknown, C rebuilt, D sketch, R reference."""
    source: str
    summary: str
    version: int = 1
    """Raised when results of the method change; part of every key."""
    sizes: tuple[str, ...] = ("tiny", "paper")
    knobs: Mapping[str, str] = field(default_factory=dict)
    """Knob name -> `train` or `test`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Constructor settings that make a variant of a shared class (`random-patch` is AdaFocusV2)."""
    variant_of: str | None = None
    authors: str | None = None
    """Module with `from_official`, which reads the authors' checkpoints, and `parity`, which replays their recorded
    outputs (harness.authors); None where there are none."""

    def __post_init__(self) -> None:
        check_fields(self, "card")
        allowed = {"space", "time", "sample", "resolution", "channels"}
        if not set(self.adapts) <= allowed:
            raise UsageError(f"card of {self.name!r}: adapts must be among {sorted(allowed)}")


def below(name: str, prefix: str) -> bool:
    """Whether dotted `name` is `prefix` or lies below it; the empty prefix holds everything."""
    return not prefix or name == prefix or name.startswith(prefix.rstrip(".") + ".")
