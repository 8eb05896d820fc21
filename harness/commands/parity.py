"""`bench.py parity`: the authors' recorded outputs against our networks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from harness.authors.parity import iter_parity
from harness.errors import FAILED, OK


def parity(folder: Path, *, as_json: bool) -> int:
    """Replay the authors' inputs; 0 only when every pair passes."""
    results = []
    for result in iter_parity(folder):
        results.append(result)
        if not as_json:
            print(f"{result.status:12} {result.name}: {result.detail}", flush=True)
    if as_json:
        print(json.dumps([asdict(r) for r in results], indent=1))
    else:
        counts = Counter(r.status for r in results)
        print(", ".join(f"{counts[s]} {s}" for s in ("pass", "fail", "unsupported") if counts[s]))
    return OK if all(r.status == "pass" for r in results) else FAILED
