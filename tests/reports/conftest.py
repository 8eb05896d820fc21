"""Fabricated records: small, synthetic, committed through harness.store.records as a run commits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.contract.values import digest, plain
from harness.measure import metrics
from harness.plan.protocol import Protocol
from harness.store.files import write_json
from harness.store.records import Record, commit_record

CLASSES = 10


@dataclass
class Fake:
    """A made-up method: how good it is, what it costs, and at which other points it can run."""

    name: str
    title: str
    skill: float
    gflops: float
    spread: float = 0.0
    adapts: tuple[str, ...] = ()
    knob: str | None = None
    curve: Sequence[tuple[float, float, float]] = ()
    """(knob value, share of the cost, loss of skill)."""
    components: dict[str, float] = field(default_factory=lambda: {"backbone": 1.0})
    looks: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    departures: tuple[str, ...] = ()
    fidelity: str = "B"
    main: str = "top1"


TSN = Fake(
    "tsn", "TSN", 3.9, 0.068, knob="frames", curve=[(1, 1 / 8, 1.9), (2, 0.25, 1.2), (4, 0.5, 0.6)], fidelity="R"
)
V2 = Fake(
    "adafocus-v2",
    "AdaFocus V2",
    3.8,
    0.0215,
    adapts=("space", "sample"),
    knob="budget",
    curve=[(0.2, 0.2, 1.3), (0.4, 0.4, 0.5), (0.5, 0.5, 0.25), (0.6, 0.6, 0.1), (0.75, 0.75, 0.02)],
    components={"glance": 0.18, "policy": 0.02, "focus": 0.78, "classifier": 0.02},
    looks=True,
    departures=("12 epochs instead of 50", "AdamW with OneCycle instead of SGD with cosine"),
)
RANDOM = Fake(
    "random-patch",
    "Random patch",
    2.2,
    0.0208,
    adapts=("space",),
    fidelity="R",
    looks=True,
    components={"glance": 0.19, "focus": 0.79, "classifier": 0.02},
)
AR_NET = Fake(
    "ar-net",
    "AR-Net",
    3.0,
    0.024,
    spread=0.25,
    adapts=("resolution", "time"),
    components={"policy": 0.2, "backbone-64": 0.5, "backbone-32": 0.2, "backbone-16": 0.1},
)
USUAL = (TSN, V2, RANDOM, AR_NET)


class Factory:
    """Writes records below a work directory."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir

    def evaluation(
        self,
        fake: Fake,
        seed: int = 0,
        *,
        videos: int = 200,
        dataset: str = "glyphs",
        fingerprint: str = "f00dfeed",
        title: str = "Glyphs (spot)",
        protocol: Protocol | None = None,
        size: str = "tiny",
        part: str | None = None,
        **overrides: Any,
    ) -> Record:
        """Commit an evaluation record of `fake`; `overrides` replace top-level entries."""
        protocol = protocol or Protocol()
        rng = np.random.default_rng([seed, len(fake.name), int(1000 * fake.skill)])
        targets = np.arange(videos)[:, None] % CLASSES
        names = metrics.reported(fake.main, CLASSES)
        arrays: dict[str, np.ndarray] = {
            "ids": np.array([f"{part or 'test'}/{i:05d}.mp4" for i in range(videos)]),
            "targets": targets,
        }
        plan = [(None, 1.0, 0.0), *fake.curve]
        ease = rng.normal(size=videos)
        points = [
            self._point(fake, i, value, share, loss, rng, ease, targets, names, arrays)
            for i, (value, share, loss) in enumerate(plan)
        ]
        key = digest([fake.name, fake.settings, seed, dataset, fingerprint, plain(protocol), size, part, overrides])
        result = {
            "kind": "evaluation",
            "key": key,
            "created": f"2026-11-20T12:{seed:02d}:00+00:00",
            "method": {
                "name": fake.name,
                "title": fake.title,
                "class": "Fake",
                "version": 1,
                "size": size,
                "settings": fake.settings,
                "adapts": list(fake.adapts),
                "fidelity": fake.fidelity,
                "variant_of": None,
                "year": 2022,
                "source": "made up for a test",
                "parameters": 197_000,
            },
            "dataset": {
                "name": dataset,
                "title": title,
                "fingerprint": fingerprint,
                "metric": fake.main,
                "classes": [f"digit {c}" for c in range(CLASSES)],
                "videos": {"train": 1200, "calib": 200, "val": 200, "test": videos},
                "resolution": 64,
                "decoder": {"pyav-yuv420p": videos + 1600},
                "missing": [],
                "part": part,
                "disclosures": ["Pre-trained on rendered stills, which show the colour of the target."],
            },
            "data": {"name": dataset, "fold": part if (part or "").startswith("fold=") else None},
            "protocol": protocol,
            "seed": seed,
            "artifact": f"m{seed}",
            "checkpoint": None,
            "initialisation": "stills",
            "training": {
                "seconds": 61.0 + seed,
                "own_seconds": 41.0 + seed,
                "samples": 14_400,
                "stages": [
                    {
                        "name": "stills",
                        "method": fake.name,
                        "key": "s0",
                        "epochs": 6,
                        "seconds": 20.0,
                        "samples": 0,
                        "shared": True,
                        "departures": [],
                        "device": "cpu",
                    },
                    {
                        "name": "main",
                        "method": fake.name,
                        "key": f"m{seed}",
                        "epochs": 12,
                        "seconds": 41.0 + seed,
                        "samples": 14_400,
                        "shared": False,
                        "departures": list(fake.departures),
                        "device": "cpu",
                    },
                ],
                "departures": list(fake.departures),
                "device": "cpu",
                "threads": 1,
            },
            "points": points,
            "cost": {"table": [], "whole_check": {"videos": 3, "max_relative_difference": 0.0004}},
            "provenance": {
                "packages": {"torch": "2.15.0", "numpy": "2.4.0"},
                "python": "3.11.9",
                "cpu": "Some CPU",
                "cores": 2,
                "git": {"revision": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
                "gpu": [],
                "driver": None,
                "machine": "aaaabbbbcccc",
                "platform": "Linux",
                "command": ["bench.py", "run", "quick"],
            },
            "sources": {"harness.measure.metrics": "abc"},
            **overrides,
        }
        overlay = self._overlay(rng, fake) if fake.looks else None
        return commit_record(self.work_dir / "records" / "evaluation" / key, result, per_video=arrays, overlay=overlay)

    def _point(
        self,
        fake: Fake,
        index: int,
        value: float | None,
        share: float,
        loss: float,
        rng: np.random.Generator,
        ease: np.ndarray,
        targets: np.ndarray,
        names: list[str],
        arrays: dict[str, np.ndarray],
    ) -> dict[str, Any]:
        videos = len(targets)
        logits = rng.normal(size=(videos, CLASSES))
        logits[np.arange(videos), targets[:, 0]] += fake.skill - loss + 0.5 * ease
        exits = None
        cost = np.full(videos, fake.gflops * share) * (1 + fake.spread * np.clip(rng.normal(size=videos), -2, 2))
        if fake.knob == "budget" and value is not None:
            exits = np.clip(np.round(8 * share - 1 - 2.2 * ease + rng.normal(size=videos)), 0, 7).astype(int)
            cost = fake.gflops * (exits + 1) / 8
        prefix = f"p{index}"
        arrays[f"{prefix}_logits"] = logits.astype(np.float32)
        arrays[f"{prefix}_gflops"] = cost
        arrays[f"{prefix}_frames"] = np.full(videos, 8.0) if exits is None else exits + 1.0
        if exits is not None:
            arrays[f"{prefix}_exits"] = exits
        quantiles = {f"q{q:02d}": float(np.quantile(cost, q / 100)) for q in (5, 25, 50, 75, 95)}
        return {
            "name": "full" if value is None else f"{fake.knob}={value:g}",
            "knob": fake.knob if value is not None else None,
            "value": value,
            "budget": value if fake.knob == "budget" else None,
            "settings": {},
            "prefix": prefix,
            "metrics": metrics.evaluate(logits, targets, names),
            "gflops": {"mean": float(cost.mean()), "std": float(cost.std()), **quantiles},
            "gflops_accounted": None,
            "components": {name: part * float(cost.mean()) for name, part in fake.components.items()},
            "frames": {"mean": 8.0, "std": 0.0},
            "exits": None if exits is None else np.bincount(exits).tolist(),
            "decisions": {},
        }

    @staticmethod
    def _overlay(rng: np.random.Generator, fake: Fake, side: int = 64, steps: int = 8) -> dict[str, np.ndarray]:
        videos = 6
        y, x = np.mgrid[:side, :side] / side
        base = np.stack([0.35 + 0.3 * x, 0.4 + 0.2 * y, 0.5 + 0.1 * x * y], axis=-1)
        frames = (
            np.repeat(np.repeat(base[None, None], steps, 1), videos, 0)
            + rng.normal(size=(videos, steps, side, side, 3)) * 0.02
        )
        exits = np.arange(videos) % steps if fake.knob == "budget" else np.full(videos, -1)
        boxes = []
        for video in range(videos):
            for step in range(steps if exits[video] < 0 else exits[video] + 1):
                top, left = 0.1 + 0.05 * step, 0.05 + 0.06 * ((step + video) % steps)
                row, column = int((top + 0.15) * side), int((left + 0.15) * side)
                frames[video, step, row : row + 14, column : column + 12] = (0.9, 0.6, 0.2)
                boxes.append((video, step, top, left, 0.5, 0.5))
        labels = np.arange(videos)
        return {
            "frames": (255 * np.clip(frames, 0, 1)).astype(np.uint8),
            "ids": np.array([f"test/{i:05d}.mp4" for i in range(videos)]),
            "labels": labels,
            "predictions": np.where(labels == 4, 7, labels),
            "exits": exits,
            "boxes": np.asarray(boxes, dtype=np.float32),
        }

    def latency(
        self,
        record: Record,
        point: str = "full",
        batch: int = 1,
        *,
        ms: float | None = None,
        status: str = "ok",
        device: str = "Some CPU",
        kind: str = "cpu",
        **overrides: Any,
    ) -> Record:
        """Commit a latency record of one operating point of `record`; `overrides` replace top-level entries."""
        result = record.result
        chosen = next(p for p in result["points"] if p["name"] == point)
        cost = chosen["gflops"]["mean"]
        rng = np.random.default_rng(batch)
        ms = 2.0 + 300 * cost if ms is None else ms
        wall = (
            (ms * (0.4 + 0.6 * batch) / 1e3 * (1 + 0.08 * rng.exponential(size=24))).tolist() if status == "ok" else []
        )
        key = digest([result["key"], point, batch, device, status, overrides])
        latency = {
            "kind": "latency",
            "key": key,
            "created": "2026-11-20T13:00:00+00:00",
            "evaluation": result["key"],
            "method": {"name": result["method"]["name"], "size": result["method"]["size"]},
            "dataset": {"name": result["dataset"]["name"], "fingerprint": result["dataset"]["fingerprint"]},
            "seed": result["seed"],
            "point": point,
            "batch": batch,
            "mode": "batch",
            "stream": None,
            "dtype": "float32",
            "compile": None,
            "engine": "eager",
            "forms": {},
            "memory_format": "channels_last",
            "threads": 1,
            "device": {"name": device, "kind": kind, "fingerprint": digest(device, 12), "driver": None, "clocks": {}},
            "status": status,
            "wall_s": wall,
            "device_s": None,
            "videos": [batch] * len(wall),
            "gflops": [cost * batch] * len(wall),
            "phases_s": {"decode": 0.004, "transform": 0.001, "transfer": 0.0001, "model": ms / 1e3},
            "frames_decoded": 24.0,
            "peak_memory_bytes": 250_000_000 + 1_000_000 * batch,
            "warmup": 5,
            "launches": [
                {
                    "forwards": 8, "warmup": 5, "prepare_s": 0.1, "unprepared": 0, "others": 0.02, "gpu_others": None,
                    "slowed": [], "clocks": {},
                }
                for _ in range(len(wall) // 8)
            ],
            "disturbed": [],
            "outputs": {"videos": 64, "differing": 0, "exits": 0, "largest": 0.0},
            "compiled_share": None,
            "precision": None,
            "options": {"min_seconds": 1.0, "launches": 3},
            "provenance": result["provenance"],
            "sources": {},
            **overrides,
        }
        return commit_record(self.work_dir / "records" / "latency" / key, latency)

    def stream(self, record: Record, point: str = "full", batch: int = 16, **changes: Any) -> Record:
        """Commit a latency record of a stream at 80 videos per second, where the plain loop takes 50."""
        stream = {
            "max_wait_s": 60.0,
            "own_s": [0.1, 0.2, 0.3, 0.4] * 24,
            "plain_s": [4 / 50] * 24,
            "batches": [{"exit": 0, "sizes": {"16": 3}}, {"exit": 7, "sizes": {"16": 1, "8": 2}}],
        }
        passes = {"mode": "stream", "wall_s": [4 / 80] * 24, "videos": [4] * 24, "stream": stream}
        options = {"min_seconds": 1.0, "launches": 3, "max_wait_s": 60.0}
        return self.latency(record, point, batch, **{**passes, "options": options, **changes})

    def failure(self, what: str = "ar-net on glyphs, seed 1", reason: str = "ran out of memory") -> None:
        """Leave the note of a failed cell."""
        entry = {"key": digest(what), "what": what, "reason": reason, "log": "logs/x.log"}
        write_json(self.work_dir / "records" / "failed" / f"{digest(what)}.json", entry)

    def usual(self, seeds: int = 2, fakes: Sequence[Fake] = USUAL) -> Path:
        """Several methods, seeds and timings on one dataset; returns the work directory."""
        for fake in fakes:
            for seed in range(seeds):
                record = self.evaluation(fake, seed)
                if seed == 0:
                    for point in (p["name"] for p in record.result["points"]):
                        self.latency(record, point, 1)
                        self.latency(record, point, 16)
        return self.work_dir


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    """Writes fabricated records into an empty work directory."""
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    return Factory(work_dir)
