"""`bench.py gate`: latencies against a revision, this machine's stored baseline, or a method's own components."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from harness.commands.arguments import method_names, resolve_device
from harness.contract.registry import method_cards
from harness.errors import FAILED, OK, BenchError, UsageError
from harness.measure.gate import ROOT, line
from harness.measure.gate import against as interleaved
from harness.measure.machine import machine_lock


def gate(
    against: str | None,
    methods: str | None,
    *,
    glue: bool,
    device: str | None,
    engine: str | None,
    store: bool,
    as_json: bool,
) -> int:
    """Timings against a revision, this machine's stored baseline, or the methods' own components."""
    names = method_names(methods)
    if not glue and (device is not None or engine is not None):
        raise UsageError("--device and --engine go with --glue; revisions and baselines are timed eagerly on the CPU")
    if glue:
        if store or against is not None:
            raise UsageError("--glue compares methods with their own components: leave out --against and --store")
        return _gate_glue(names, device or "auto", engine or "eager", as_json=as_json)
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


def _gate_glue(names: Sequence[str], device: str, engine: str, *, as_json: bool) -> int:
    from harness.measure import glue  # imports torch, which the other gates do without

    def report(text: str) -> None:
        print(text, file=sys.stderr)

    names, device, found = names or sorted(method_cards()), resolve_device(device), []
    with machine_lock(ROOT, on_wait=report):
        for case, one in glue.gated(names, device=device, engine=engine, report=report):
            found.append({"case": case, **asdict(one)})
            if not as_json:
                word = "BROKEN" if one.verdict.broken else "ok"
                print(f"{case}: {word}, at most x{one.limit:.2f}, {glue.line(one)}", flush=True)
    if as_json:
        print(json.dumps(found, indent=1))
    return FAILED if any(case["verdict"]["broken"] for case in found) else OK


def _gate_stored(names: Sequence[str], store: bool) -> int:
    folder = ROOT / "tests" / "benchmarks"
    if not folder.is_dir():
        raise BenchError(
            "the stored baselines lie in the project's checkout (tests/benchmarks); use --against REV there"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(folder), *(["--store"] if store else [])]
    command += ["-k", " or ".join(names)] if names else []
    return OK if subprocess.run(command, cwd=ROOT, check=False).returncode == 0 else FAILED
