"""The gate's statistics on made samples, and its bookkeeping on a made repository; no verdict here is timed."""

from __future__ import annotations

import os
import signal
import subprocess

import numpy as np
import pytest

from harness.errors import BenchError, UsageError
from harness.measure import gate
from harness.measure.gate import (
    ALPHA,
    CASES_PER_METHOD,
    SPARE,
    TREE_PREFIX,
    GateResult,
    against,
    decide,
    decide_launches,
    launches_needed,
    line,
    read_baseline,
    store_baseline,
    stored,
)
from harness.measure.gate_worker import cases, work
from harness.measure.machine import fingerprint


def samples(median, *, spread=0.02, count=20, seed=0):
    return median * np.exp(spread * np.random.default_rng(seed).standard_normal(count))


@pytest.mark.parametrize(("factor", "broken", "faster"), [
    (1.0, False, False),
    (1.07, False, False),  # true, but small
    (1.25, True, False),
    (1 / 1.25, False, True),
    (1 / 1.07, False, False),
])  # fmt: skip
def test_a_break_is_large(factor, broken, faster):
    verdict = decide(samples(0.01), samples(0.01 * factor, seed=1))
    assert (verdict.broken, verdict.faster) == (broken, faster)
    assert verdict.ratio == pytest.approx(factor, rel=0.03)
    assert verdict.low <= verdict.ratio <= verdict.high


def test_a_break_is_significant():
    verdict = decide([1, 2, 3, 4, 5, 6, 7], [1.5, 2.5, 3.5, 4.9, 5.5, 6.5, 7.5])
    assert verdict.ratio > 1.1
    assert verdict.p > 0.01
    assert not verdict.broken


def test_fewest_samples_can_break():
    verdict = decide([1, 1.01, 1.02, 1.03, 1.04], [1.2, 1.21, 1.22, 1.23, 1.24])
    assert verdict.p == pytest.approx(2 / 252)
    assert verdict.broken


@pytest.mark.parametrize(("spread", "rate"), [(0.02, 0), (0.05, 0), (0.15, 0.01)])
def test_noise_breaks_no_more_often_than_alpha(spread, rate):
    pairs = [(samples(1, spread=spread, seed=i), samples(1, spread=spread, seed=1000 + i)) for i in range(200)]
    assert np.mean([decide(old, new).broken for old, new in pairs]) <= rate


def test_outliers_do_not_decide():
    noisy = [*samples(1, count=18), 9, 12]
    assert not decide(samples(1, seed=1), noisy).broken


def test_verdict_does_not_depend_on_the_unit_or_the_call():
    old, new = samples(1), samples(1.3, seed=1)
    assert decide(old, new) == decide(old, new)
    assert decide(1e-3 * old, 1e-3 * new).ratio == pytest.approx(decide(old, new).ratio)


def test_exact_p_reaches_the_share_of_many_cases():
    alpha = ALPHA / (CASES_PER_METHOD * 28)
    verdict = decide([1 + 0.001 * i for i in range(10)], [1.3 + 0.001 * i for i in range(10)], alpha=alpha)
    assert verdict.p == pytest.approx(2 / 184756) and verdict.broken


def test_tied_samples_are_permuted():
    assert decide([1.0] * 12, [1.5] * 12, alpha=2e-4).broken
    assert decide([1.0, 1.0, 1.1] * 4, [1.0, 1.1, 1.1] * 4).p > 0.1


def launches_of(methods):
    """The share of alpha of each case, and the launches taken by default."""
    alpha = ALPHA / (CASES_PER_METHOD * methods)
    return alpha, launches_needed(alpha) + SPARE


@pytest.mark.parametrize(("methods", "launches"), [(1, 11), (3, 13), (28, 16), (100, 18)])
def test_launches_follow_from_the_number_of_methods(methods, launches):
    alpha, taken = launches_of(methods)
    assert taken == launches
    steady = decide_launches(1.2 + 0.001 * np.arange(taken - SPARE), alpha=alpha)
    assert steady.broken and steady.p <= alpha
    one_wrong = decide_launches([0.999, *(1.2 + 0.001 * np.arange(taken - 1))], alpha=alpha)
    assert one_wrong.broken
    with pytest.raises(UsageError, match=f"{taken - SPARE} are needed"):
        decide_launches([1.2] * (taken - SPARE - 1), alpha=alpha)


@pytest.mark.parametrize("methods", [1, 28])
@pytest.mark.parametrize(("spread", "power"), [(0.02, 0.99), (0.05, 0.99), (0.10, 0.85)])
def test_a_fifth_slower_is_found_and_noise_is_not(methods, spread, power):
    alpha, launches = launches_of(methods)
    noise = np.exp(spread * np.random.default_rng(0).standard_normal((300, launches)))
    assert np.mean([decide_launches(1.2 * ratios, alpha=alpha).broken for ratios in noise]) >= power
    assert not any(decide_launches(ratios, alpha=alpha).broken for ratios in noise)


def test_interval_over_launches_is_that_of_their_median():
    verdict = decide_launches([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])
    assert verdict.ratio == pytest.approx(1.5)
    assert (verdict.low, verdict.high) == pytest.approx((1.1, 1.9))  # 98.8 %; the next narrower has 93.5 %


USELESS = [([1] * 4, [1] * 4), ([1] * 9, []), ([1] * 9, [1, 1, 1, 1, 0]), ([1] * 5, [np.nan] * 5)]


@pytest.mark.parametrize(("old", "new"), USELESS)
def test_useless_samples_are_refused(old, new):
    with pytest.raises(UsageError, match="samples"):
        decide(old, new)


def test_unknown_machine_passes_and_offers_to_store(tmp_path):
    result = stored("tsn", samples(1), tmp_path)
    assert result.verdict is None
    assert "--store" in line(result)
    path = store_baseline(tmp_path, {"tsn": [1.0] * 5})
    store_baseline(tmp_path, {"tsm": [2.0] * 5})
    assert path.name == f"{fingerprint()}.json"
    assert read_baseline(tmp_path) == {"tsn": [1.0] * 5, "tsm": [2.0] * 5}
    assert stored("tsn", samples(1.5), tmp_path).verdict.broken
    assert not stored("tsm", samples(2.0), tmp_path).verdict.broken


def test_broken_baseline_is_named(tmp_path):
    path = store_baseline(tmp_path, {})
    path.write_text('{"samples_s": 3}')
    with pytest.raises(BenchError, match=path.name):
        read_baseline(tmp_path)


def test_lines_say_what_happened():
    old, new = (1.0,) * 5, (1.5, 1.51, 1.52, 1.53, 1.54)
    text = line(GateResult("tsn", old, new, decide(old, new), "the executed work differs"))
    assert text.startswith("tsn: BROKEN, 1000.00 -> 1520.00 ms, x1.520")
    assert text.endswith("(the executed work differs)")


TORCH = """
import contextlib
from types import SimpleNamespace
uint8, channels_last, inference_mode = None, None, contextlib.nullcontext
class Generator:
    def manual_seed(self, seed): return self
def manual_seed(seed): pass
def set_num_threads(number): pass
def randint(low, high, shape, dtype, generator): return SimpleNamespace(shape=shape)
"""
TRACE = """
import numpy as np
class Key(str):
    def label(self): return str(self)
class Trace:
    def __init__(self, videos): self.counts = {}
"""
REGISTRY = """
from types import SimpleNamespace
from {place}.trace import Key
import numpy as np
class Method:
    exits = {exits}
    def __init__(self, **settings): self.settings = settings
    @classmethod
    def settings_for(cls, size, resolution): return {{"depth": 1}}
    def eval(self): return self
    def parameters(self): return []
    def operating_points(self, budgets): return [SimpleNamespace(settings={{}})]
    def exit_settings(self, step): return {{"exit_at": step}}
    def clip_requests(self, point): return [SimpleNamespace(name="frames", frames=2, resolution=None)]
    def infer(self, clips, point, trace):
        assert clips["frames"].shape == (1, 2, 3, 64, 64) and self.settings["depth"] == 1
        trace.counts[Key("work")] = np.array([{rows}])
def method_cards(): return {{name: SimpleNamespace(settings={{}}) for name in {names}}}
def recognizer_class(name): return Method
"""


def git(root, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def write(root, *, place="harness.contract", **values):
    folder = root.joinpath(*place.split("."))
    folder.mkdir(exist_ok=True, parents=True)
    (root / "harness" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (root / "torch.py").write_text(TORCH)  # the real one takes seconds to import
    (folder / "trace.py").write_text(TRACE)
    (folder / "registry.py").write_text(REGISTRY.format(place=place, **values))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A commit with one made method, and a working tree whose method does more, has exits and a companion.

    The commit is from before the rooms: its modules lie elsewhere.
    """
    monkeypatch.setattr(gate, "ALPHA", 1.0)  # three launches suffice
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(gate.tempfile, "tempdir", None)
    root = tmp_path / "root"
    root.mkdir()
    git(root, "init", "--quiet")
    (root / "note").touch()
    git(root, "add", "note")
    git(root, "commit", "--quiet", "-m", "before there was a harness")
    write(root, place="harness", exits=0, rows=1, names=["tsn"])
    git(root, "add", "harness", "torch.py")
    git(root, "commit", "--quiet", "-m", "old")
    write(root, exits=4, rows=2, names=["tsn", "tsm"])
    yield root
    assert git(root, "worktree", "list").count("\n") == 1
    assert not list((tmp_path / "tmp").glob(f"{TREE_PREFIX}*"))


def test_cases_of_a_method_with_exits():
    whole, stopped = cases("adafocus-v2", batch=2)
    assert (whole.name, stopped.name) == ("adafocus-v2", "adafocus-v2:exit")
    done, less = work(whole.run()), work(stopped.run())
    assert sum(less.values()) < sum(done.values())
    assert work(whole.run()) == done
    assert cases("no-such-method") == []


def test_old_and_new_code_run_from_their_own_trees(repository):
    tsn, stops, tsm = against("HEAD", ["tsn", "tsm"], root=repository, rounds=2, launches=3, seconds=0)
    assert (tsn.case, len(tsn.old_s), len(tsn.new_s)) == ("tsn", 3, 3)
    assert tsn.note == "the executed work differs"
    assert tsn.verdict is not None
    assert (stops.case, stops.verdict, stops.note) == ("tsn:exit", None, "HEAD has no such case")
    assert (tsm.case, tsm.verdict, tsm.note) == ("tsm", None, "HEAD has no method 'tsm'")


def test_revision_without_a_harness_is_said_so(repository):
    (result,) = against("HEAD~1", ["tsn"], root=repository, rounds=2, launches=3, seconds=0)
    assert result.verdict is None
    assert result.note.startswith("HEAD~1 does not run it: ImportError: there is no harness in ")


def test_method_that_fails_there_does_not_end_the_gate(repository):
    write(repository, exits=0, rows=1, names=["tsn", "tsm"])
    with (repository / "harness" / "contract" / "registry.py").open("a") as file:
        file.write("Method.infer = None\n")
    git(repository, "add", "harness")
    git(repository, "commit", "--quiet", "-am", "broken")
    write(repository, exits=0, rows=1, names=["tsn", "tsm"])
    results = against("HEAD", ["tsn", "tsm"], root=repository, rounds=2, launches=3, seconds=0)
    assert [r.note for r in results] == ["HEAD does not run it: TypeError: 'NoneType' object is not callable"] * 2


def test_method_that_fails_there_in_a_later_launch_has_no_verdict(repository, monkeypatch):
    answer, asked = gate._Worker.ask, []

    def ask(worker, request):
        asked.append(worker.tree)
        if worker.tree != repository and asked.count(worker.tree) > 2:
            raise gate.WorkerError(worker.tree, "tsn", "it took too long")
        return answer(worker, request)

    monkeypatch.setattr(gate._Worker, "ask", ask)
    (result,) = against("HEAD", ["tsn"], root=repository, rounds=2, launches=3, seconds=0)
    assert (result.verdict, result.note) == (None, "HEAD does not run it: it took too long")


def test_method_that_fails_here_is_an_error(repository):
    write(repository, exits="1/0", rows=1, names=["tsn"])
    with pytest.raises(BenchError, match=r"(?s)tsn .*ZeroDivisionError"):
        against("HEAD", ["tsn"], root=repository, rounds=2, launches=3, seconds=0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_nothing_behind(repository, number, monkeypatch):
    started = []
    monkeypatch.setattr(gate._Worker, "ask", lambda self, _: started.append(self) or os.kill(os.getpid(), number))
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            against("HEAD", ["tsn"], root=repository, launches=3)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert [worker.process.returncode for worker in started] == [-signal.SIGKILL]


def test_tree_of_a_killed_gate_is_swept(repository, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / "tmp" / f"{TREE_PREFIX}{gone.pid}-x"
    git(repository, "worktree", "add", "--quiet", "--detach", str(left / "tree"), "HEAD")
    with gate._worktree(repository, "HEAD") as tree:
        assert not left.exists()
        assert (tree / "harness" / "registry.py").is_file()


def test_unknown_revision_is_named(repository):
    with pytest.raises(UsageError, match="nonesuch"):
        against("nonesuch", ["tsn"], root=repository)


def test_option_like_revision_is_no_option(repository):
    with pytest.raises(UsageError):
        against("--all", ["tsn"], root=repository)


def test_folder_without_git_is_named(tmp_path):
    with pytest.raises(UsageError, match="git"):
        against("HEAD", ["tsn"], root=tmp_path)


def test_too_few_launches_are_refused(tmp_path):
    with pytest.raises(UsageError, match="2 launches are too few .* ask for 9 or more"):
        against("HEAD", ["tsn"], root=tmp_path, launches=2)
