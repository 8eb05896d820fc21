"""What the smaller commands of bench.py do: data, cost, parity, gates, doctor. Each returns an exit code."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.cli import FAILED, OK, method_names, parse_sets, resolve_device
from harness.data.cards import SIZES, dataset_card
from harness.data.lists import first_existing
from harness.errors import BenchError, UsageError, unknown
from harness.registry import method_card
from harness.settings import plain


def gflops(
    method: str | None, *, paper: bool, size: str, resolution: int, classes: int, sets: Sequence[str], as_json: bool
) -> int:
    """Measured beside published, or the parts of one method; 1 where a published figure is missed."""
    from harness.cost.gflops import measure_paper, method_table, render_method, render_paper
    from harness.cost.published import exit_table, paper_table

    if paper == (method is not None):
        raise UsageError("say which method to count, or --paper for all published fixed costs")
    if method is not None:
        settings = parse_sets(sets)[0].settings
        result: Any = method_table(method, size=size, resolution=resolution, num_classes=classes, settings=settings)
        ok = True
    else:
        rows = (*paper_table(), *exit_table())
        result = measure_paper(rows, progress=lambda row: print(f"counting {row.label()}", file=sys.stderr))
        ok = all(row["ok"] is not False for row in result)
    if as_json:
        print(json.dumps(plain(result), indent=1))
    else:
        console = Console(width=None if sys.stdout.isatty() else 160)
        for table in [render_method(result)] if method is not None else render_paper(result):
            console.print(table)
    return OK if ok else FAILED


def convert(official: Path, method: str | None, out: Path, *, sets: Sequence[str]) -> int:
    """Write the authors' checkpoint as an artifact of ours."""
    from harness import artifacts, sources
    from harness.build import build_recognizer
    from harness.official import convert as read

    if method is not None:
        method_card(method)
    if (out / "artifact.json").exists():
        raise UsageError(f"{out} holds an artifact already; choose another --out")
    converted = read(official, method=method, **parse_sets(sets)[0].settings)
    card = method_card(converted.method)
    model = build_recognizer(converted.method, converted.settings)
    artifacts.load_into(model, converted.state, origin=str(official))
    description = {
        "method": card.name,
        "stage": "official",
        "size": "paper",
        "settings": converted.settings,
        "recipe": {"epochs": 0},
        "inputs": [official.name],
        "unused": list(converted.unused),
        "unplaced": list(converted.unplaced),
        "differing": list(converted.differing),
        "assumed": list(converted.assumed),
        "initialisation": f"official checkpoint {official.name}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "departures": [],
        "sources": sources.loaded(),
    }
    artifacts.write(out, model.state_dict(), description)
    print(converted.report())
    print(f"wrote {out}")
    return OK


def parity(folder: Path, *, as_json: bool) -> int:
    """Replay the authors' inputs; 0 only when every pair passes."""
    from harness.parity import iter_parity

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


def gate(against: str | None, methods: str | None, *, store: bool, as_json: bool) -> int:
    """Timings against a revision, or against this machine's stored baseline."""
    names = method_names(methods)
    if as_json and against is None:
        raise UsageError("--json goes with --against; the stored baseline is pytest's own report")
    if against is None:
        return _gate_stored(names, store)
    if store:
        raise UsageError("--store goes with the stored baseline, not with --against")
    from harness.gate import against as interleaved
    from harness.gate import line

    results = interleaved(against, names, report=lambda text: print(text, file=sys.stderr))
    if as_json:
        print(json.dumps([asdict(r) for r in results], indent=1))
    for result in () if as_json else results:
        print(line(result))
    timed = [r.verdict for r in results if r.verdict is not None]
    return OK if timed and not any(v.broken for v in timed) else FAILED


def _gate_stored(names: Sequence[str], store: bool) -> int:
    import subprocess

    from harness.gate import ROOT

    folder = ROOT / "tests" / "benchmarks"
    if not folder.is_dir():
        raise BenchError(
            "the stored baselines lie in the project's checkout (tests/benchmarks); use --against REV there"
        )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(folder), *(["--store"] if store else [])]
    command += ["-k", " or ".join(names)] if names else []
    return OK if subprocess.run(command, cwd=ROOT, check=False).returncode == 0 else FAILED


def doctor(work_dir: Path, data_root: Path, weights_dir: Path | None, *, as_json: bool) -> int:
    """Findings with remedies; 1 where something does not work."""
    from harness.doctor import diagnose

    findings = diagnose(work_dir, data_root, weights_dir)
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    for finding in () if as_json else findings:
        print(f"{finding.level:5} {finding.what}" + (f"\n      -> {finding.remedy}" if finding.remedy else ""))
    return FAILED if any(f.level == "fail" for f in findings) else OK


def profile(
    method: str, *, size: str, resolution: int, batch: int, device: str, out: Path, sets: Sequence[str], as_json: bool
) -> int:
    """Time per component on synthetic clips."""
    from harness.build import build_recognizer, full_settings
    from harness.cost.gflops import synthetic_clips
    from harness.profile import profile as run_profile
    from harness.profile import table

    settings = full_settings(method, size, resolution, parse_sets(sets)[0].settings)
    recognizer = build_recognizer(method, {**settings, "num_classes": 10, "resolution": resolution}).eval()
    clips = {
        name: clip.expand(batch, *clip.shape[1:]).contiguous() for name, clip in synthetic_clips(recognizer).items()
    }
    out.mkdir(parents=True, exist_ok=True)
    found = run_profile(recognizer, clips, {}, out / f"{method}.trace.json", device=resolve_device(device))
    print(json.dumps(plain(found), indent=1) if as_json else table(found))
    return OK


def data_render(names: Sequence[str], *, size: str, data_root: Path, processes: int) -> int:
    """Render embedded sets."""
    from harness.data.render import render

    for name in names:
        card = dataset_card(name)
        if card.kind != "embedded":
            raise UsageError(f"{name} is not rendered; `bench.py data prepare {name}` says what it needs")
        if size not in SIZES:
            raise unknown("size", size, SIZES)
        folder = render(name, size, data_root, processes=processes)
        print(f"{name} ({size}): {folder}")
    return OK


def data_prepare(names: Sequence[str], *, data_root: Path) -> int:
    """What a real data set needs and what of it is there; 1 where something is missing."""
    complete = True
    for name in names:
        card = dataset_card(name)
        if card.kind == "embedded" or name.startswith("csv:"):
            print(f"{name}: nothing to prepare")
            continue
        folder = data_root / card.name
        print(f"{name}: {card.title}; frames or videos below {folder}")
        for what, candidates in [*card.splits.items(), ("classes", card.class_files)]:
            found = first_existing(folder, candidates)
            complete = complete and (found is not None or not candidates)
            print(f"  {what:8} {' or '.join(candidates) or '-'}: {found.name if found else 'MISSING'}")
    return OK if complete else FAILED


def data_check(
    name: str,
    *,
    full: bool,
    size: str,
    data_root: Path,
    train: str | None,
    test: str | None,
    allow_absolute: bool,
    as_json: bool,
) -> int:
    """All broken videos of a data set; 1 where there are any."""
    from harness.data.check import check
    from harness.data.videos import listed

    card, splits = listed(name, data_root=data_root, size=size, train=train, test=test, allow_absolute=allow_absolute)
    entries = list({e.path: e for entries in splits.values() for e in entries}.values())
    problems = check(entries, full, template=card.template, cache_dir=data_root)
    if as_json:
        print(json.dumps([asdict(p) for p in problems], indent=1))
    else:
        for problem in problems:
            print(f"{problem.id}: {problem.reason}")
        how = "decoded whole" if full else "opened"
        print(f"{len(entries)} videos {how}, {len(problems)} broken")
    return FAILED if problems else OK


def data_stats(
    name: str, *, size: str, data_root: Path, train: str | None, test: str | None, allow_absolute: bool, as_json: bool
) -> int:
    """Counts, classes, lengths and decoder paths."""
    from harness.data.videos import open_dataset

    videos = open_dataset(name, data_root=data_root, size=size, train=train, test=test, allow_absolute=allow_absolute)
    splits: dict[str, dict[str, Any]] = {}
    for split, entries in videos.splits.items():
        lengths = sorted(e.frames or 0 for e in entries)
        per_class = Counter(label for e in entries for label in e.labels)
        splits[split] = {
            "videos": len(entries),
            "frames": {"min": lengths[0], "median": lengths[len(lengths) // 2], "max": lengths[-1]} if lengths else {},
            "per_class": {videos.card.classes[c]: n for c, n in sorted(per_class.items())},
        }
    found = {
        "name": videos.card.name,
        "title": videos.card.title,
        "metric": videos.card.metric,
        "classes": len(videos.card.classes),
        "resolution": videos.resolution,
        "decoder": dict(videos.decoder),
        "fingerprint": videos.fingerprint,
        "splits": splits,
    }
    if as_json:
        print(json.dumps(found, indent=1))
        return OK
    print(f"{found['name']}: {found['title']}; {found['classes']} classes, {found['metric']}, {found['resolution']} px")
    print(f"decoder: {found['decoder']}; fingerprint {videos.fingerprint[:16]}")
    for split, row in splits.items():
        sizes = row["per_class"].values()
        spread = f"per class {min(sizes, default=0)}-{max(sizes, default=0)}"
        print(f"  {split:6} {row['videos']:7} videos, frames {row['frames']}, {spread}")
    return OK
