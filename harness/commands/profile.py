"""`bench.py profile`: time per component of a method on synthetic clips, and a torch.profiler trace."""

from __future__ import annotations

import json
from pathlib import Path

from harness.commands.arguments import plain_settings, resolve_device
from harness.contract.values import plain
from harness.errors import OK
from harness.measure import profiling
from harness.measure.latency import learn, prepared
from harness.measure.parts import built, synthetic_clips


def profile(
    method: str,
    *,
    size: str,
    resolution: int,
    batch: int,
    device: str,
    engine: str,
    out: Path,
    sets: list[str] | None,
    as_json: bool,
) -> int:
    """Time per component on synthetic clips, and what lies between them."""
    recognizer = built(method, size, resolution, 10, plain_settings("profile", sets))
    clips = synthetic_clips(recognizer, videos=batch)
    with prepared(recognizer, device=resolve_device(device), engine=engine) as target:
        learn(recognizer, [clips], {})
        found = profiling.profile(recognizer, clips, {}, out / f"{method}.trace.json", device=target)
    print(json.dumps(plain(found), indent=1) if as_json else profiling.table(found))
    return OK
