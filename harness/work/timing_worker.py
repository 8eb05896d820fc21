"""One process of a timing session: `python -m harness.work.timing_worker WORK_DIR < request.json`.

The request names the specs, and the files of the answer: `out`, JSON, for each spec `found` or `error`. Of latencies it
says whether to `examine` or to time them (`first`: with what one launch measures for all), and `arrays` (.npz) of an
examination, which launches read. Of an evaluation the segments are timed.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.contract.values import plain
from harness.errors import BenchError
from harness.plan.units import EvalSpec, LatencySpec, Spec, read_spec
from harness.store.files import write_arrays
from harness.work.processes import die_with_parent, use_threads


def main() -> int:
    """Do what the request on standard input says."""
    die_with_parent(int(os.environ["BENCH_PARENT"]))
    request, work_dir = json.load(sys.stdin), Path(sys.argv[1])
    specs = [read_spec(spec) for spec in request["specs"]]
    use_threads(specs[0].threads)
    answers: dict[str, Any] = {}
    try:
        if isinstance(specs[0], EvalSpec):
            from harness.measure.segment_times import time_segments

            answers[specs[0].key] = {"found": time_segments(specs[0], work_dir)}
        elif request["examine"]:
            answers = _examine(_latencies(specs), work_dir, Path(request["arrays"]))
        else:
            from harness.measure.timing import time_launch

            reference = _read_arrays(Path(request["arrays"])) if Path(request["arrays"]).exists() else None
            launch = time_launch(_latencies(specs), work_dir, first=request["first"], reference=reference)
            for spec, found in launch:
                answers[spec.key] = {"found": found}
    except BenchError as error:
        _fail(answers, specs, str(error))
    except Exception as error:  # noqa: BLE001  (the process boundary: every failure becomes a record)
        traceback.print_exc()
        _fail(answers, specs, f"{type(error).__name__}: {error}")
    Path(request["out"]).write_text(json.dumps(plain(answers)))
    return 0


def _latencies(specs: Sequence[Spec]) -> list[LatencySpec]:
    return [spec for spec in specs if isinstance(spec, LatencySpec)]


def _fail(answers: dict[str, Any], specs: Sequence[Spec], reason: str) -> None:
    for spec in specs:
        answers.setdefault(spec.key, {"error": reason})


def _examine(specs: list[LatencySpec], work_dir: Path, path: Path) -> dict[str, Any]:
    from harness.measure.timing import examine

    found, arrays = examine(specs, work_dir)
    if arrays:
        write_arrays(path, {f"{kind}/{point}": v for point, kinds in arrays.items() for kind, v in kinds.items()})
    return {spec.key: {"found": found[spec.point]} for spec in specs}


def _read_arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in stored.files:
            kind, _, point = name.partition("/")
            arrays.setdefault(point, {})[kind] = stored[name]
    return arrays


if __name__ == "__main__":
    sys.exit(main())
