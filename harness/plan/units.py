"""Units of work as data: what is trained, evaluated and timed, and the key of each. No torch.

A key is a hash of everything the result depends on; equal keys are one piece of work, done once and
shared. A spec holds enough to do the work in another process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from harness.contract.declarations import InitFrom, ParamGroup, Stage
from harness.contract.groups import check
from harness.contract.values import digest, from_mapping, plain
from harness.errors import DataError
from harness.plan import protocol as protocols
from harness.plan.protocol import TIME_BUDGETS, Protocol, budget_label
from harness.store.work_dir import Kind, record_folder

TRAINING_VERSION = 1
"""Raised when training itself changes meaning; part of every artifact key."""

MODES = ("batch", "stream", "file")
"""What is on the clock of a latency: `batch`, a forward of one batch of clips that lie in memory; `stream`, a stream of
such clips, rebatched between exits (harness.engine.stream); `file`, a batch from opening its files to logits."""


@dataclass(frozen=True)
class DataSpec:
    """How to open a dataset again, from any folder (`harness.data.videos.open_dataset`)."""

    name: str
    """The path of `csv:PATH` becomes an absolute one."""
    data_root: str
    """Becomes absolute."""
    size: str
    train: str | None = None
    test: str | None = None
    fold: str | None = None
    allow_missing: int = 0
    allow_absolute: bool = False
    limit: int | None = None
    pipeline: str = "harness"

    def __post_init__(self) -> None:
        if self.name.startswith("csv:") and self.name != "csv:":
            object.__setattr__(self, "name", f"csv:{os.path.abspath(self.name[4:])}")
        object.__setattr__(self, "data_root", os.path.abspath(self.data_root))

    def open(self, fingerprint: str | None = None) -> Any:
        """The VideoSet; every file is looked at, unless it was before and has not changed.

        With the `fingerprint` that work was planned with, a set that has changed since raises DataError: what it
        gives would stand under the key of the other.
        """
        from harness.data.videos import open_dataset

        videos = open_dataset(**asdict(self))
        if fingerprint not in (None, videos.fingerprint):
            raise DataError(f"{self.label()} has changed since this was planned (videos, labels or splits); run again")
        return videos

    def label(self) -> str:
        """Short name for progress lines."""
        name = self.name
        if name.startswith("csv:"):
            name = Path(name[4:]).parent.name or Path(name[4:]).stem
        part = self.fold or self.test
        return f"{name}[{part}]" if part else name


@dataclass(frozen=True)
class Weights:
    """Tensors loaded before training: from the artifact `key`, or from the file `path`."""

    into: str
    take: str
    key: str | None = None
    path: str | None = None
    backbone: str | None = None
    """With `path`: the backbone whose ImageNet file it is."""


@dataclass(frozen=True)
class TrainSpec:
    """One training artifact: a stage of a method, or the stills pre-training of a backbone."""

    method: str
    """Method name; `pretraining` for a backbone on stills."""
    method_version: int
    settings: Mapping[str, Any]
    """All constructor settings."""
    stage: Mapping[str, Any]
    """The Stage, plain."""
    weights: tuple[Weights, ...]
    data: DataSpec
    fingerprint: str
    seed: int
    training: Mapping[str, Any]
    """The part of the protocol that training depends on."""
    initialisation: str
    """stills, imagenet or scratch: where the very first weights came from."""

    @cached_property
    def key(self) -> str:
        """Hash of everything the weights depend on."""
        depends = {
            "version": TRAINING_VERSION,
            "method": self.method,
            "method_version": self.method_version,
            "settings": self.settings,
            "stage": self.stage,
            "weights": [
                {"into": w.into, "take": w.take, "from": w.key or _file_identity(w.path)} for w in self.weights
            ],
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "training": self.training,
        }
        return digest(depends)

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the work that must be done before."""
        return tuple(w.key for w in self.weights if w.key)

    @property
    def threads(self) -> int:
        """Torch threads of the process that does it."""
        return int(self.training["threads"])

    def label(self) -> str:
        """Readable name for progress lines."""
        return f"{self.method}/{self.stage['name']} on {self.data.label()} seed {self.seed} [{self.key[:4]}]"


@dataclass(frozen=True)
class EvalSpec:
    """One evaluation record: an artifact under a protocol, at all its operating points."""

    kind: ClassVar[Kind] = "evaluation"
    method: str
    size: str
    settings: Mapping[str, Any]
    artifact: str
    """Key of the stage whose weights are evaluated, or `file:HASH` of a checkpoint."""
    chain: tuple[str, ...]
    """Keys of all artifacts that led there, pre-training first."""
    own_chain: tuple[str, ...]
    """The ones no other method shares."""
    data: DataSpec
    fingerprint: str
    seed: int
    protocol: Mapping[str, Any]
    initialisation: str
    checkpoint: str | None = None
    """Path of a checkpoint evaluated without training."""
    timed_on: Mapping[str, Any] | None = None
    """Machine, device, threads, dtype, engine and memory format that its budgets in milliseconds hold for; None: they
    are in multiply-accumulates, which are the same everywhere."""
    quiet_wait_s: float = 0.0
    """How long a quiet machine is waited for before segments are timed; what is timed does not depend on it."""

    @cached_property
    def key(self) -> str:
        """Hash of everything the record depends on; the machine is part of it only where budgets are times."""
        depends = {
            "version": protocols.VERSION,
            "artifact": self.artifact,
            "method": self.method,
            "size": self.size,
            "settings": self.settings,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "protocol": {k: v for k, v in self.protocol.items() if self.timed_on or k not in TIME_BUDGETS},
        }
        return digest(depends | ({"timed_on": self.timed_on} if self.timed_on else {}))

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the work that must be done before."""
        return () if self.checkpoint else self.chain

    @property
    def threads(self) -> int:
        """Torch threads of the process that does it."""
        return int(self.protocol["threads"])

    def folder(self, work_dir: Path) -> Path:
        """Where its record lies."""
        return record_folder(work_dir, self.kind, self.key)

    def label(self) -> str:
        """Readable name for progress lines."""
        return f"{self.method}{budget_label(self.protocol)} on {self.data.label()} seed {self.seed}"


@dataclass(frozen=True)
class LatencySpec:
    """One latency record: an operating point of an evaluation on this machine."""

    kind: ClassVar[Kind] = "latency"
    evaluation: str
    method: str
    size: str
    data: DataSpec
    seed: int
    point: str
    batch: int
    machine: str
    device: str
    mode: str = "batch"
    """One of `MODES`."""
    dtype: str = "float32"
    engine: str = "eager"
    memory_format: str = "channels_last"
    threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    """min_seconds (over all launches), launches, and of mode stream max_wait_s."""
    quiet_wait_s: float = 0.0
    """How long a quiet machine is waited for; what is timed does not depend on it."""
    budgets: str = ""
    """`budget_label` of the evaluation, for progress lines."""

    @cached_property
    def key(self) -> str:
        """Hash of everything the record depends on, the machine included."""
        left_out = ("data", "method", "size", "quiet_wait_s", "budgets")
        return digest({k: v for k, v in asdict(self).items() if k not in left_out})

    @property
    def setup(self) -> tuple[Any, ...]:
        """What one process times: an evaluated model as it computes."""
        return self.evaluation, self.device, self.dtype, self.engine, self.memory_format, self.threads

    @property
    def needs(self) -> tuple[str, ...]:
        """Keys of the work that must be done before."""
        return (self.evaluation,)

    def folder(self, work_dir: Path) -> Path:
        """Where its record lies."""
        return record_folder(work_dir, self.kind, self.key)

    def label(self) -> str:
        """Readable name for progress lines."""
        mode = "" if self.mode == "batch" else f", {self.mode}"
        method = f"{self.method}{self.budgets}"
        return f"{method} on {self.data.label()} seed {self.seed}: {self.point}, batch {self.batch}{mode}"


Spec = TrainSpec | EvalSpec | LatencySpec
"""Any unit of work."""


def training_part(protocol: Protocol) -> dict[str, Any]:
    """The protocol settings that weights depend on."""
    names = ("train_split", "selection", "epoch_scale", "dtype", "threads", "limit")
    return {name: getattr(protocol, name) for name in names}


def to_plain(spec: Spec) -> dict[str, Any]:
    """JSON form, read back by `read_spec`."""
    return {"kind": type(spec).__name__, **plain(asdict(spec))}


def read_spec(value: Mapping[str, Any]) -> Spec:
    """Inverse of `to_plain`."""
    kinds: dict[str, type] = {c.__name__: c for c in (TrainSpec, EvalSpec, LatencySpec)}
    fields = dict(value)
    cls = kinds[fields.pop("kind")]
    fields["data"] = from_mapping(DataSpec, fields["data"])
    for name in ("chain", "own_chain"):
        if name in fields:
            fields[name] = tuple(fields[name])
    if "weights" in fields:
        fields["weights"] = tuple(from_mapping(Weights, w) for w in fields["weights"])
    return from_mapping(cls, fields)


def read_stage(value: Mapping[str, Any]) -> Stage:
    """A Stage from its plain form (JSON, TOML)."""
    fields = dict(value)
    for name, cls in (("groups", ParamGroup), ("init", InitFrom)):
        if name in fields:
            parts = check(f"stage.{name}", fields[name], list[Any] | tuple[Any, ...])
            fields[name] = tuple(from_mapping(cls, part, kind=f"stage.{name}") for part in parts)
    return from_mapping(Stage, fields, kind="stage")


def _file_identity(path: str | None) -> str | None:
    if path is None:
        return None
    state = os.stat(path)
    return _hash_once(path, state.st_size, state.st_mtime_ns)


@cache
def _hash_once(path: str, size: int, time_ns: int) -> str:
    """Hash of a file, read again only when its size or time has changed."""
    from harness.store.files import file_hash

    return file_hash(Path(path))
