"""Timings run alone, on request: `pytest tests/benchmarks [--store]`, or `bench.py gate [--store]`.

The baseline lies in `baselines/FINGERPRINT.json`, one file per machine. On a machine without one the
timings are reported and pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.measure.gate import GateResult, line, store_baseline
from harness.measure.machine import fingerprint, machine_lock

HERE = Path(__file__).parent
BASELINES = HERE / "baselines"
RESULTS = pytest.StashKey[list[GateResult]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--store`."""
    parser.addoption("--store", action="store_true", help="store the timings as this machine's baseline")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the list of results."""
    config.stash[RESULTS] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip timings that would share the machine with other tests."""
    reason = _disturbed(config)
    for item in items:
        if reason and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=reason))


def _disturbed(config: pytest.Config) -> str:
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        return "timings run in one process: leave out -n"
    asked = [Path(config.invocation_params.dir, argument.partition("::")[0]) for argument in config.args]
    if not all(path.resolve().is_relative_to(HERE) for path in asked):
        return "timings run alone: pytest tests/benchmarks"
    return ""


@pytest.fixture(scope="session", autouse=True)
def _alone() -> Iterator[None]:
    with machine_lock("tests/benchmarks"):
        yield


@pytest.fixture
def storing(request: pytest.FixtureRequest) -> bool:
    """Whether timings are to be stored rather than compared."""
    return bool(request.config.getoption("--store", default=False))


@pytest.fixture
def results(request: pytest.FixtureRequest) -> list[GateResult]:
    """What is shown at the end, and stored with `--store`."""
    return request.config.stash[RESULTS]


@pytest.fixture
def baselines() -> Path:
    """Folder of the stored baselines."""
    return BASELINES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show every case; store them if asked."""
    found = config.stash.get(RESULTS, [])
    if not found:
        return
    terminalreporter.section(f"latency against the baseline of machine {fingerprint()}")
    for result in found:
        terminalreporter.write_line(line(result))
    if config.getoption("--store", default=False):
        path = store_baseline(BASELINES, {result.case: result.new_s for result in found})
        terminalreporter.write_line(f"stored in {path}")
