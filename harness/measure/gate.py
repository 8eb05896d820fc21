"""Latency gates: has a change made a method slower? No torch.

A break is significant *and* larger than 10 %: noise alone breaks nothing, nor does a true but small
change. `against` times two revisions interleaved in one run, so that what the machine does meanwhile
falls on both; `stored` compares with samples kept from this very machine. Tests and power: docs/measurement.md#gate.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from harness.contract.registry import method_card, method_cards
from harness.errors import BenchError, UsageError
from harness.measure.machine import fingerprint, machine, machine_lock
from harness.store.files import write_json

ROOT = Path(__file__).resolve().parents[2]
THRESHOLD, ALPHA = 0.10, 0.01
CASES_PER_METHOD = 2
"""At most; `harness.measure.gate_worker.cases`."""
SPARE = 2
"""Launches beyond those that p needs: one of the wrong sign must not hide a change."""
TREE_PREFIX = "focusbench-gate-"


@dataclass(frozen=True)
class Verdict:
    """What two sets of samples say of one case."""

    ratio: float
    """New over old: above 1 is slower."""
    low: float
    high: float
    """95 % interval of the ratio."""
    p: float
    """Two-sided and exact: Wilcoxon's signed ranks over launches, or Mann-Whitney over samples of one launch each."""
    broken: bool
    """Significantly slower, and by more than the threshold."""
    faster: bool
    """The same the other way round."""


@dataclass(frozen=True)
class GateResult:
    """One timed case of a gate."""

    case: str
    old_s: tuple[float, ...]
    new_s: tuple[float, ...]
    verdict: Verdict | None
    """None where there was nothing to compare with; `note` says why."""
    note: str = ""


@dataclass
class _Series:
    """Round medians of one case, by launch, and the work it executed."""

    launches: list[list[float]] = field(default_factory=list)
    work: Mapping[str, float] = field(default_factory=dict)


def decide(
    old: Sequence[float], new: Sequence[float], *, threshold: float = THRESHOLD, alpha: float = ALPHA, seed: int = 0
) -> Verdict:
    """Compare samples of two revisions, one launch of each: what the luck of a start does is not in p.

    Args:
        old, new: Seconds, one per round (its median); at least five of each for the default alpha.
        threshold: Smallest relative change of the median that counts.
        alpha: Largest p that counts.
        seed: Of the bootstrap interval.

    Raises:
        UsageError: too few samples for p to reach alpha at all, or one that is not a positive number.
    """
    from scipy.stats import PermutationMethod, mannwhitneyu  # takes seconds to import

    before, after = _seconds(old), _seconds(new)
    if smallest_p(before.size, after.size) > alpha:
        raise UsageError(f"{before.size} and {after.size} samples are too few for p to reach {alpha:.2g}; take more")
    ratio = float(np.median(after) / np.median(before))
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(v, (2000, v.size)), axis=1) for v in (before, after)]
    low, high = (float(q) for q in np.quantile(medians[1] / medians[0], (0.025, 0.975)))
    tied = np.unique(np.r_[before, after]).size < before.size + after.size
    method = PermutationMethod(n_resamples=20_000, rng=np.random.default_rng(seed)) if tied else "exact"
    p = float(mannwhitneyu(before, after, alternative="two-sided", method=method).pvalue)
    return _verdict(ratio, low, high, p, threshold, alpha)


def decide_launches(ratios: Sequence[float], *, threshold: float = THRESHOLD, alpha: float = ALPHA) -> Verdict:
    """Compare two revisions over launches: each gives one ratio, new over old, and is one unit of evidence.

    Rounds of one launch share how its processes lie in memory and on the cores, so that more rounds show no more.

    Args:
        ratios: New over old seconds of every launch, each the ratio of the medians of its rounds.
        threshold: Smallest relative change that counts.
        alpha: Largest p that counts.

    Raises:
        UsageError: too few launches for p to reach alpha at all, or a ratio that is not a positive number.
    """
    from scipy.special import bdtrik
    from scipy.stats import wilcoxon  # takes seconds to import

    logs = np.sort(np.log(_seconds(ratios)))
    if 2.0 ** (1 - logs.size) > alpha:
        raise UsageError(
            f"{logs.size} launches are too few for p to reach {alpha:.2g}; {launches_needed(alpha)} are needed"
        )
    p = float(wilcoxon(logs, method="exact").pvalue) if logs.any() else 1.0
    cut = max(int(np.ceil(bdtrik(0.025, logs.size, 0.5))), 1)  # order statistics: the binomial interval of a median
    low, ratio, high = np.exp([logs[cut - 1], np.median(logs), logs[-cut]])
    return _verdict(float(ratio), float(low), float(high), p, threshold, alpha)


def launches_needed(alpha: float) -> int:
    """The fewest launches whose smallest p, all of one sign, reaches alpha."""
    return math.ceil(1 - math.log2(alpha))


def _verdict(ratio: float, low: float, high: float, p: float, threshold: float, alpha: float) -> Verdict:
    significant = p <= alpha
    return Verdict(
        ratio, low, high, p,
        broken=significant and ratio > 1 + threshold,
        faster=significant and ratio < 1 / (1 + threshold),
    )  # fmt: skip


def _seconds(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise UsageError("samples must be positive seconds")
    return found


def smallest_p(old: int, new: int) -> float:
    """The Mann-Whitney p of samples that do not overlap at all."""
    return 2 / math.comb(old + new, new) if old and new else 1.0


def against(
    rev: str,
    methods: Sequence[str] = (),
    *,
    rounds: int = 2,
    launches: int | None = None,
    batch: int = 1,
    seconds: float = 0.2,
    threads: int = 1,
    root: Path = ROOT,
    report: Callable[[str], None] = lambda _: None,
) -> list[GateResult]:
    """Time `infer` of the working tree and of revision `rev`, turn about, in one run on the CPU.

    The old code runs from a git worktree that is removed afterwards, also on interruption. Each side is
    a process of its own with this Python environment; while one times, the other waits for its input.
    The cases of one run share alpha (Bonferroni), so that more methods raise no more false alarms; the number of
    launches follows from theirs, so that the smallest p there is stays below each one's share.

    Args:
        rev: Anything git can resolve to a commit.
        methods: Names; empty for all of this tree.
        rounds: Turns of each side per launch, in the order old new new old.
        launches: How often both processes are started afresh, each time one unit of evidence; by default SPARE more
            than p needs to reach its share of alpha.
        batch: Videos per forward.
        seconds: Timed per case and turn, at least.
        threads: Torch threads of each side.
        root: The working tree.
        report: Called with a line of progress.

    Raises:
        UsageError: unknown revision or method, no git checkout, or too few launches.
        BenchError: a method does not run in the working tree.
    """
    names = [method_card(name).name for name in methods] or sorted(method_cards())
    alpha = ALPHA / (CASES_PER_METHOD * len(names))
    needed = launches_needed(alpha)
    launches = needed + SPARE if launches is None else launches
    if launches < needed:
        raise UsageError(
            f"{launches} launches are too few for p to reach {alpha:.2g}, the share of each of "
            f"{CASES_PER_METHOD * len(names)} cases; ask for {needed} or more, or for fewer methods"
        )
    series: dict[str, dict[str, _Series]] = {"old": {}, "new": {}}
    notes: dict[str, str] = {}
    with _worktree(root, rev) as tree, machine_lock(root, on_wait=report):
        for launch in range(launches):
            with _Worker(tree, threads) as old, _Worker(root, threads) as new:
                for name in (n for n in names if n not in notes):
                    report(f"timing {name}, launch {launch + 1} of {launches}")
                    request = {"method": name, "batch": batch, "seconds": seconds, "threads": threads}
                    _interleave({"old": old, "new": new}, request, rounds, rev, series, notes)
    whole = [case for case in series["new"] if case.removesuffix(":exit") not in notes]
    return [_result(case, series, rev, alpha) for case in whole] + [
        GateResult(name, (), (), None, note) for name, note in notes.items()
    ]


def stored(case: str, samples: Sequence[float], folder: Path, *, alpha: float = ALPHA) -> GateResult:
    """Compare with the samples stored for this machine in `folder`; no verdict where there are none."""
    entry = read_baseline(folder).get(case)
    if entry is None:
        took = f"{1e3 * float(np.median(samples)):.2f} ms"
        note = f"{took}; no baseline for machine {fingerprint()}, `bench.py gate --store` stores one"
        return GateResult(case, (), tuple(samples), None, note)
    return GateResult(case, tuple(entry), tuple(samples), decide(entry, samples, alpha=alpha))


def read_baseline(folder: Path) -> dict[str, list[float]]:
    """Case -> seconds stored for this machine; empty where none are."""
    path = folder / f"{fingerprint()}.json"
    if not path.exists():
        return {}
    try:
        return {str(k): [float(s) for s in v] for k, v in json.loads(path.read_text())["samples_s"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BenchError(f"{path} is not a baseline ({error}); remove it and store a new one") from None


def store_baseline(folder: Path, samples: Mapping[str, Sequence[float]]) -> Path:
    """Add or replace cases in this machine's baseline; returns its path."""
    path = folder / f"{fingerprint()}.json"
    cases = {**read_baseline(folder), **{case: list(values) for case, values in samples.items()}}
    write_json(path, {"machine": asdict(machine()), "samples_s": cases})
    return path


def line(result: GateResult) -> str:
    """One result as a line of text."""
    if result.verdict is None:
        return f"{result.case}: {result.note}"
    verdict = result.verdict
    word = "BROKEN" if verdict.broken else "faster" if verdict.faster else "ok"
    old, new = (1e3 * float(np.median(values)) for values in (result.old_s, result.new_s))
    interval = f"x{verdict.ratio:.3f} [{verdict.low:.3f}, {verdict.high:.3f}], p {verdict.p:.2g}"
    note = f" ({result.note})" if result.note else ""
    return f"{result.case}: {word}, {old:.2f} -> {new:.2f} ms, {interval}{note}"


def _interleave(
    workers: Mapping[str, _Worker],
    request: Mapping[str, Any],
    rounds: int,
    rev: str,
    series: dict[str, dict[str, _Series]],
    notes: dict[str, str],
) -> None:
    name = str(request["method"])
    for turn in range(rounds):
        for side in ("old", "new") if turn % 2 == 0 else ("new", "old"):
            try:
                timed = workers[side].ask(request)
            except WorkerError as error:
                if side == "new":
                    raise
                notes[name] = f"{rev} does not run it: {error.reason}"
                return
            if side == "old" and not timed:
                notes[name] = f"{rev} has no method {name!r}"
                return
            for case, found in timed.items():
                entry = series[side].setdefault(case, _Series())
                if turn == 0:
                    entry.launches.append([])
                entry.launches[-1].append(found["median_s"])
                entry.work = found["work"]


def _result(case: str, series: Mapping[str, Mapping[str, _Series]], rev: str, alpha: float) -> GateResult:
    new, old = series["new"][case], series["old"].get(case)
    after = tuple(float(np.median(rounds)) for rounds in new.launches)
    if old is None:
        return GateResult(case, (), after, None, f"{rev} has no such case")
    note = "" if old.work == new.work else "the executed work differs"
    before = tuple(float(np.median(rounds)) for rounds in old.launches)
    verdict = decide_launches([b / a for a, b in zip(before, after, strict=True)], alpha=alpha)
    return GateResult(case, before, after, verdict, note)


class WorkerError(BenchError):
    """The code of one tree failed."""

    def __init__(self, tree: Path, method: str, words: str) -> None:
        super().__init__(f"timing {method} in {tree} failed:\n{words}")
        self.reason = words.splitlines()[-1]


class _Worker:
    """A process that times the code of one tree on request; ends with the `with` block, however that ends."""

    def __init__(self, tree: Path, threads: int, *, timeout_s: float = 600.0) -> None:
        self.tree, self.timeout_s = tree, timeout_s
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
        }

    def __enter__(self) -> _Worker:
        script = Path(__file__).with_name("gate_worker.py")
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(self.tree)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=self.environment,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Cases timed by the process, which is awaited without using the processor.

        Raises WorkerError where it failed or took too long; a fresh one then takes the next request.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        alarm = threading.Timer(self.timeout_s, self.process.kill)
        alarm.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            text = self.process.stdout.readline()
        except BrokenPipeError:
            text = ""
        finally:
            alarm.cancel()
        if not text:
            self.process.wait()
            self.errors.seek(0)
            words = self.errors.read()[-3000:].strip() or "it took too long"
            error = WorkerError(self.tree, str(request["method"]), words)
            self.__exit__()
            self.__enter__()
            raise error
        cases: dict[str, Any] = json.loads(text)["cases"]
        return cases


@contextlib.contextmanager
def _worktree(root: Path, rev: str) -> Iterator[Path]:
    """A checkout of `rev` in a temporary folder, removed afterwards, also on SIGTERM and SIGINT."""
    commit = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}").strip()
    _sweep(root)
    with _terminable():
        folder = Path(tempfile.mkdtemp(prefix=f"{TREE_PREFIX}{os.getpid()}-"))
        try:
            _git(root, "worktree", "add", "--quiet", "--detach", str(folder / "tree"), commit)
            yield folder / "tree"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            _git(root, "worktree", "prune")


def _sweep(root: Path) -> None:
    """Remove trees that a killed gate left behind: ours by name, their process gone."""
    for entry in _git(root, "worktree", "list", "--porcelain").splitlines():
        folder = Path(entry.removeprefix("worktree ")).parent
        if entry.startswith("worktree ") and folder.name.startswith(TREE_PREFIX):
            pid = folder.name.removeprefix(TREE_PREFIX).partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)
    _git(root, "worktree", "prune")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UsageError("comparing with a revision needs git, which is not installed") from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no such revision"
        raise UsageError(f"git {arguments[0]} {arguments[-1]!r} in {root}: {reason}")
    return done.stdout


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exit that runs the clean-up (in the main thread, which alone gets signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
