"""`bench.py data`: render, prepare, check and describe data sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.commands.options import Videos
from harness.data.cards import SIZES, DatasetCard, dataset_card
from harness.data.check import inspect
from harness.data.lists import first_existing
from harness.data.render import render
from harness.data.videos import (
    copies_together,
    duplicates,
    listed,
    open_dataset,
    overlaps,
    require_classes,
    untrained,
    usable,
    with_held_out,
)
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
    """Everything that is wrong with a data set, or worth knowing; 1 where a run would refuse it."""
    card, splits = listed(name, size=size, **asdict(found))
    entries = list({e.id: e for chosen in splits.values() for e in chosen}.values())
    infos, problems = inspect(entries, full, template=card.template, cache_dir=found.data_root)
    kept, dropped = usable(card, splits, infos, {p.id for p in problems})
    contents = {i: info.content for i, info in infos.items()}
    refused = overlaps(card, kept, contents)
    shown: dict[str, Sequence[Any]] = {
        "broken": [asdict(p) for p in problems],
        "overlapping": [{"splits": pair, "videos": same} for pair, same in refused.items()],
        "duplicates": duplicates(kept, contents),
        "dropped": dropped,
        "untrained": untrained(card, kept) if "train" in kept else [],
    }
    if as_json:
        print(json.dumps(shown, indent=1))
    else:
        _print_checked(card, shown)
        how = "decoded whole" if full else "opened"
        print(f"{len(entries)} videos {how}, " + ", ".join(f"{len(found)} {what}" for what, found in shown.items()))
    if "train" in splits:
        require_classes(card, splits)
        held, _ = usable(card, with_held_out(card, splits), infos, {p.id for p in problems})
        require_classes(card, held if "calib" in splits else copies_together(held, contents))
    return FAILED if problems or refused else OK


def _print_checked(card: DatasetCard, shown: Mapping[str, Sequence[Any]]) -> None:
    for problem in shown["broken"]:
        print(f"{problem['id']}: {problem['reason']}")
    for overlap in shown["overlapping"]:
        for one, other in overlap["videos"]:
            print(f"{one}: is in {' and '.join(overlap['splits'])}{f' (as {other})' if one != other else ''}")
    for group in shown["duplicates"]:
        print(f"equal content: {', '.join(group)}")
    for short in shown["dropped"]:
        print(f"{short}: has fewer than {card.min_frames} frames, left out")
    for name in shown["untrained"]:
        print(f"class {name}: has no training video")


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
        "dropped": videos.dropped,
        "duplicates": videos.duplicates,
        "untrained": videos.untrained,
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
    for what in ("dropped", "duplicates", "untrained"):
        if getattr(videos, what):
            print(f"{what}: {len(getattr(videos, what))}; `bench.py data check {name}` names them")
    return OK
