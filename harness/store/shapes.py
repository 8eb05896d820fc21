"""What a reader rests on in the JSON files of a work directory; further keys are his own matter. No torch.

The whole schema of records, key by key, stands in `harness.store.records`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class _Mean:
    mean: float


@dataclass(frozen=True)
class _Point:
    name: str
    prefix: str
    metrics: dict[str, _Metric]
    gflops: _Mean
    settings: dict[str, Any]
    knob: str | None
    value: float | None
    budget: float | None


@dataclass(frozen=True)
class _Named:
    name: str
    size: str


@dataclass(frozen=True)
class _Method(_Named):
    title: str
    settings: dict[str, Any]
    adapts: list[str]
    fidelity: str


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
    missing: list[str]
    disclosures: list[str]


@dataclass(frozen=True)
class _Training:
    seconds: float
    samples: int
    departures: list[str]


@dataclass(frozen=True)
class _Cost:
    table: list[dict[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """What a reader of an evaluation's result.json rests on."""

    key: str
    kind: Literal["evaluation"]
    created: str
    method: _Method
    dataset: _DataSet
    data: dict[str, Any]
    protocol: dict[str, Any]
    seed: int
    artifact: str
    checkpoint: str | None
    training: _Training
    points: list[_Point]
    cost: _Cost
    provenance: dict[str, Any]
    sources: dict[str, str]
    per_video: File


@dataclass(frozen=True)
class Latency:
    """What a reader of a latency's result.json rests on."""

    key: str
    kind: Literal["latency"]
    evaluation: str
    method: _Named
    dataset: _Data
    seed: int
    point: str
    batch: int
    status: str
    device: dict[str, Any]
    provenance: dict[str, Any]
    sources: dict[str, str]


@dataclass(frozen=True)
class Versioned:
    """What tells which of these shapes holds."""

    schema: int


@dataclass(frozen=True)
class FailureNote:
    """Why a cell failed."""

    what: str
    reason: str
