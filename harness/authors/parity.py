"""Does our model compute what the authors' model computes? Replays recorded pairs of inputs and outputs.

    bench.py parity FOLDER

A pair is `NAME.json` (settings, names and shapes of the authors' checkpoint) and `NAME.npz` (what their
model returned). Weights and inputs are not stored: `fill` and `video` make them from names and seeds, the
same on every machine. A method joins in by naming a module in its CARD (`authors`) that holds `parity(case)`; it
returns the outputs by name, or None for a pair that is not the method's own.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.registry import authors_module, method_cards
from harness.errors import BenchError, DataError, UsageError, about

TOLERANCE = 1e-4
"""Largest absolute difference of a recorded output; discrete outputs must be equal."""

LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-2
"""Relative, for recorded training steps; names of gradients begin with `grad`."""

GIVEN = ("random_actions", "labels")
"""Arrays of a training pair that are inputs, where its JSON names none (`given`)."""


@dataclass(frozen=True)
class ParityCase:
    """One recorded pair."""

    name: str
    spec: Mapping[str, Any]
    """The JSON."""
    arrays: Mapping[str, np.ndarray]
    """The npz: expected outputs and, for a training step, given inputs."""

    @property
    def training(self) -> bool:
        """Whether the pair is a training step."""
        return self.spec.get("kind") == "train"

    @property
    def expected(self) -> dict[str, np.ndarray]:
        """Outputs to be met."""
        given = self.spec.get("given", GIVEN)
        return {name: value for name, value in self.arrays.items() if name not in given}

    def checkpoint(self) -> dict[str, Any]:
        """The authors' state dict under their names without prefix, or several by the name of their part."""
        return self._filled(self.spec["tensors"])

    def _filled(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        gains = self.spec.get("gains", {})
        return {
            name: self._filled(shape)
            if isinstance(shape, Mapping)
            else np.asarray(fill(name, shape) * gains.get(name, 1))
            for name, shape in tensors.items()
        }

    def clip(self, frames: int, side: int, batch: int = 2) -> np.ndarray:
        """The input clip (B, T, 3, H, W), float32, already normalised."""
        return video(self.spec["input_seed"], (batch, frames, 3, side, side))


@dataclass(frozen=True)
class ParityResult:
    """What became of a pair."""

    name: str
    status: str
    """pass, fail or unsupported."""
    detail: str
    """Largest difference, or the reason."""


def run_parity(folder: Path | str, names: Sequence[str] = ()) -> list[ParityResult]:
    """Replay the pairs in `folder`, all or those in `names`.

    Raises:
        UsageError: No pairs there, or an unknown name.
    """
    return list(iter_parity(folder, names))


def iter_parity(folder: Path | str, names: Sequence[str] = ()) -> Iterator[ParityResult]:
    """As `run_parity`, each result as soon as it is known."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; name one of parity pairs (NAME.json beside NAME.npz)")
    found = {p.stem: p.with_suffix(".json") for p in sorted(folder.iterdir()) if p.suffix in (".json", ".npz")}
    if not found:
        raise UsageError(f"{folder} holds no parity pairs (NAME.json beside NAME.npz)")
    unknown_names = [name for name in names if name not in found]
    if unknown_names:
        raise UsageError(f"{folder} has no pair {', '.join(unknown_names)}; it has {', '.join(found)}")
    for name in names or found:
        try:
            case = read_case(found[name])
        except BenchError as error:  # other pairs may still pass
            yield ParityResult(name, "fail", str(error))
        else:
            yield replay(case)


def read_case(path: Path) -> ParityCase:
    """The pair whose JSON file is `path`.

    Raises:
        DataError: One of its files is missing, damaged, or of another form.
    """
    values = path.with_suffix(".npz")
    with about(path, "a pair is NAME.json beside NAME.npz"):
        text = path.read_text(encoding="utf-8")
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(spec, dict):
        raise DataError(f"{path} holds a {type(spec).__name__}, not settings by name")
    try:
        with about(values, "a pair is NAME.json beside NAME.npz"), np.load(values, allow_pickle=False) as arrays:
            return ParityCase(path.stem, spec, dict(arrays))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise DataError(f"{values} is damaged, or no .npz of plain arrays: {type(error).__name__}") from error


def replay(case: ParityCase) -> ParityResult:
    """Let the method that knows the pair compute it, and compare."""
    broken: list[str] = []
    for name, card in method_cards().items():
        try:
            module = None if card.variant_of else authors_module(card)
        except BenchError as error:  # a card that is wrong says nothing of this pair
            broken.append(str(error))
            continue
        if module is None:
            continue
        try:
            outputs = module.parity(case)
        except BenchError as error:
            return ParityResult(case.name, "fail", str(error))
        except Exception as error:  # noqa: BLE001  (a pair may hold anything, and others may still pass)
            return ParityResult(case.name, "fail", f"{name} stopped with {type(error).__name__}: {error}")
        if outputs is not None:
            return compare(case, outputs)
    told = "; ".join((f"no method computes {case.spec.get('method', 'this pair')!r} yet", *broken))
    return ParityResult(case.name, "unsupported", told)


def compare(case: ParityCase, outputs: Mapping[str, np.ndarray]) -> ParityResult:
    """Hold a method's outputs against the recorded ones."""
    problems, worst = [], 0.0
    for name, expected in case.expected.items():
        if name not in outputs:
            problems.append(f"{name} was not computed")
            continue
        difference, limit = _difference(case, name, np.asarray(outputs[name]), expected)
        worst = max(worst, difference / limit if limit else difference)
        if not difference <= limit:
            problems.append(f"{name} differs by {difference:.2e}, allowed {limit:.0e}")
    found = problems or [f"{len(case.expected)} outputs, {worst:.1%} of the tolerance used"]
    return ParityResult(case.name, "fail" if problems else "pass", "; ".join(found))


def _difference(case: ParityCase, name: str, value: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Difference (absolute; relative for a training step) and its limit."""
    if value.shape != expected.shape:
        return float("inf"), 0.0
    if not np.issubdtype(expected.dtype, np.floating):
        return float(np.count_nonzero(value != expected)), 0.0
    difference = float(np.abs(value.astype(np.float64) - expected).max())
    if not case.training:
        return difference, TOLERANCE
    size = float(np.abs(expected).max())
    return difference / size, GRADIENT_TOLERANCE if name.startswith("grad") else LOSS_TOLERANCE


def fill(name: str, shape: Sequence[int]) -> np.ndarray:
    """The value of the checkpoint tensor `name`: float32 noise seeded by its name, scaled by its role.

    Weights are He-scaled and, with more than 16 inputs, centred per filter, which keeps different inputs
    apart through many ReLUs; statistics and biases lie near their usual starting values.
    """
    shape = tuple(shape)
    role = name.split(".")[-1]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if role == "num_batches_tracked":
        return np.zeros(shape, dtype=np.int64)
    if role == "running_var":
        return (1.0 + 0.5 * rng.random(shape)).astype(np.float32)
    if role != "running_mean" and len(shape) > 1:
        inputs = int(np.prod(shape[1:]))
        filters = rng.standard_normal(shape) * np.sqrt(2.0 / inputs)
        if inputs > 16:
            filters -= filters.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        return filters.astype(np.float32)
    noise = rng.standard_normal(shape)
    return (0.8 + 0.1 * noise if role == "weight" else 0.02 * noise).astype(np.float32)


def video(seed: int, shape: Sequence[int]) -> np.ndarray:
    """A smooth random clip (..., H, W), float32, about N(0, 1): 8x8 noise blown up bilinearly, plus fine noise."""
    *lead, height, width = shape
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((*lead, 8, 8))
    top, below = _between(height)
    left, right = _between(width)
    rows, columns = top.astype(int), left.astype(int)
    down, across = below[:, None], right[None, :]
    corners = [coarse[..., rows[:, None] + i, columns[None, :] + j] for i in (0, 1) for j in (0, 1)]
    smooth = (
        corners[0] * (1 - down) * (1 - across)
        + corners[1] * (1 - down) * across
        + corners[2] * down * (1 - across)
        + corners[3] * down * across
    )
    return (smooth + 0.1 * rng.standard_normal((*lead, height, width))).astype(np.float32)


def _between(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Index of the coarse cell and the position inside it, for each of `length` pixels over 8 cells."""
    position = np.linspace(0, 7, length)
    cell = np.minimum(position.astype(int), 6)
    return cell, position - cell
