"""`bench.py data`: render, prepare, check and describe data sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.commands.options import Videos
from harness.data.cards import SIZES, dataset_card
from harness.data.check import check
from harness.data.lists import first_existing
from harness.data.render import render
from harness.data.videos import listed, open_dataset
from harness.errors import FAILED, OK, UsageError, unknown


def render_sets(names: Sequence[str], *, size: str, data_root: Path, processes: int) -> int:
    """Render embedded sets."""
    for name in names:
        card = dataset_card(name)
        if card.kind != "embedded":
            raise UsageError(f"{name} is not rendered; `bench.py data prepare {name}` says what it needs")
        if size not in SIZES:
            raise unknown("size", size, SIZES)
        folder = render(name, size, data_root, processes=processes)
        print(f"{name} ({size}): {folder}")
    return OK


def prepare(names: Sequence[str], *, data_root: Path) -> int:
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


def check_set(name: str, found: Videos, *, full: bool, size: str, as_json: bool) -> int:
    """All broken videos of a data set; 1 where there are any."""
    card, splits = listed(name, size=size, **asdict(found))
    entries = list({e.path: e for entries in splits.values() for e in entries}.values())
    problems = check(entries, full, template=card.template, cache_dir=found.data_root)
    if as_json:
        print(json.dumps([asdict(p) for p in problems], indent=1))
    else:
        for problem in problems:
            print(f"{problem.id}: {problem.reason}")
        how = "decoded whole" if full else "opened"
        print(f"{len(entries)} videos {how}, {len(problems)} broken")
    return FAILED if problems else OK


def stats(name: str, opened: Videos, *, size: str, as_json: bool) -> int:
    """Counts, classes, lengths and decoder paths."""
    videos = open_dataset(name, size=size, **asdict(opened))
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
