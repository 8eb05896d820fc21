"""What a reader rests on in the JSON files of a work directory; further keys are his own matter. No torch.

The whole schema of records, key by key, stands in `harness.store.records`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 1
"""Of records and artifacts; raised when a key changes its meaning."""


@dataclass(frozen=True)
class File:
    """A file beside its description."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Begun:
    """What an unfinished training rests on."""

    sources: dict[str, str]
    made_with: dict[str, str]


@dataclass(frozen=True)
class _Settings:
    num_classes: int


@dataclass(frozen=True)
class Artifact:
    """What must be in an artifact.json, whoever made it."""

    schema: int
    method: str
    stage: str
    settings: _Settings
    weights: File
    sources: dict[str, str]
    size: str | None = None
    classes: list[str] | None = None
    pipeline: Literal["harness", "authors"] = "harness"


@dataclass(frozen=True)
class _Recipe:
    epochs: int


@dataclass(frozen=True, kw_only=True)
class TrainedArtifact(Artifact):
    """What must be in the artifact.json of a training."""

    recipe: _Recipe
    seconds: float
    samples: int
    departures: list[str]
    device: str


@dataclass(frozen=True)
class _Metric:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Mean:
    mean: float


@dataclass(frozen=True)
class _Spread(_Mean):
    std: float


@dataclass(frozen=True)
class _Point:
    name: str
    prefix: str
    metrics: dict[str, _Metric]
    gflops: _Spread
    components: dict[str, float]
    frames: _Mean
    exits: list[int] | None
    settings: dict[str, Any]
    knob: str | None
    value: float | None
    budget: float | None
    gflops_accounted: _Mean | None = None
    predicted: _Predicted | None = None


@dataclass(frozen=True)
class _Named:
    name: str
    size: str


@dataclass(frozen=True)
class _Method(_Named):
    title: str
    version: int
    settings: dict[str, Any]
    adapts: list[str]
    fidelity: str
    year: int
    source: str
    parameters: int


@dataclass(frozen=True)
class _Data:
    name: str
    fingerprint: str


@dataclass(frozen=True)
class _DataSet(_Data):
    title: str
    metric: str
    classes: list[str]
    videos: dict[str, int]
    resolution: int
    decoder: dict[str, int]
    missing: list[str]
    disclosures: list[str]
    part: str | None = None


@dataclass(frozen=True)
class _Stage:
    name: str
    method: str
    epochs: int
    seconds: float
    samples: int
    shared: bool


@dataclass(frozen=True)
class _Training:
    seconds: float
    own_seconds: float
    samples: int
    stages: list[_Stage]
    departures: list[str]
    device: str


@dataclass(frozen=True)
class _Protocol:
    test_split: str
    budget_unit: Literal["gflops", "ms"] = "gflops"
    budget_batch: int = 1


@dataclass(frozen=True)
class _Predicted:
    seconds: float


@dataclass(frozen=True)
class _SegmentTimes:
    device: dict[str, Any]
    disturbed: list[str]


@dataclass(frozen=True)
class _Check:
    max_relative_difference: float


@dataclass(frozen=True)
class _Cost:
    table: list[dict[str, Any]]
    whole_check: _Check


@dataclass(frozen=True)
class _Git:
    revision: str
    dirty: bool


@dataclass(frozen=True)
class _Provenance:
    git: _Git | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a reader of an evaluation's result.json rests on."""

    key: str
    kind: Literal["evaluation"]
    created: str
    method: _Method
    dataset: _DataSet
    data: dict[str, Any]
    protocol: _Protocol
    seed: int
    artifact: str
    checkpoint: str | None
    initialisation: str
    training: _Training
    points: list[_Point]
    cost: _Cost
    provenance: _Provenance
    sources: dict[str, str]
    per_video: File
    overlay: File | None = None
    segment_times: _SegmentTimes | None = None
    disclosures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("points is empty")
        if self.protocol.test_split not in self.dataset.videos:
            raise ValueError(f"dataset.videos lacks the tested split {self.protocol.test_split}")
        if any(self.dataset.metric not in point.metrics for point in self.points):
            raise ValueError(f"a point lacks the main metric {self.dataset.metric}")


@dataclass(frozen=True)
class _Device:
    name: str
    kind: str
    fingerprint: str
    driver: str | None
    kernels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Launch:
    forwards: int
    others: float | None


@dataclass(frozen=True)
class _Agreement:
    top1: float | None
    exits: float | None
    decisions: float | None
    boxes: float | None


@dataclass(frozen=True)
class _Precision:
    agreement: _Agreement
    metrics: dict[str, _Metric]

    def __post_init__(self) -> None:
        if not self.metrics:
            raise ValueError("precision.metrics is empty")


@dataclass(frozen=True)
class _EagerClips:
    wall_s: list[float]
    frames_decoded: float


@dataclass(frozen=True)
class _Executed:
    exit: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class _Stream:
    max_wait_s: float
    own_s: list[float]
    plain_s: list[float]
    batches: list[_Executed]


@dataclass(frozen=True)
class Latency:
    """What a reader of a latency's result.json rests on."""

    key: str
    kind: Literal["latency"]
    created: str
    evaluation: str
    method: _Named
    dataset: _Data
    seed: int
    point: str
    batch: int
    dtype: str
    compile: str | None
    memory_format: str
    threads: int
    status: str
    device: _Device
    wall_s: list[float]
    device_s: list[float] | None
    videos: list[int]
    gflops: list[float]
    peak_memory_bytes: int | None
    provenance: _Provenance
    sources: dict[str, str]
    phases_s: dict[str, float] = field(default_factory=dict)
    launches: list[_Launch] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    mode: str = "batch"
    frames_decoded: float = 0.0
    eager_clips: _EagerClips | None = None
    stream: _Stream | None = None
    compiled_share: float | None = None
    engine: str | None = None
    precision: _Precision | None = None

    def __post_init__(self) -> None:
        if self.mode == "file" and self.eager_clips is None:
            raise ValueError("eager_clips is missing, which mode file has")


@dataclass(frozen=True)
class Versioned:
    """What tells which of these shapes holds."""

    schema: int


@dataclass(frozen=True)
class FailureNote:
    """Why a cell failed."""

    what: str
    reason: str
