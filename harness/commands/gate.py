"""`bench.py gate`: latencies against a revision, or against this machine's stored baseline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from harness.commands.arguments import method_names
from harness.errors import FAILED, OK, BenchError, UsageError
from harness.measure.gate import ROOT, line
from harness.measure.gate import against as interleaved


def gate(against: str | None, methods: str | None, *, store: bool, as_json: bool) -> int:
    """Timings against a revision, or against this machine's stored baseline."""
    names = method_names(methods)
    if as_json and against is None:
        raise UsageError("--json goes with --against; the stored baseline is pytest's own report")
    if against is None:
        return _gate_stored(names, store)
    if store:
        raise UsageError("--store goes with the stored baseline, not with --against")

    results = interleaved(against, names, report=lambda text: print(text, file=sys.stderr))
    if as_json:
        print(json.dumps([asdict(r) for r in results], indent=1))
    for result in () if as_json else results:
        print(line(result))
    timed = [r.verdict for r in results if r.verdict is not None]
    return OK if timed and not any(v.broken for v in timed) else FAILED


def _gate_stored(names: Sequence[str], store: bool) -> int:
    folder = ROOT / "tests" / "benchmarks"
    if not folder.is_dir():
        raise BenchError(
            "the stored baselines lie in the project's checkout (tests/benchmarks); use --against REV there"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(folder), *(["--store"] if store else [])]
    command += ["-k", " or ".join(names)] if names else []
    return OK if subprocess.run(command, cwd=ROOT, check=False).returncode == 0 else FAILED
