"""Open a dataset: lists read, videos checked, splits fixed and held apart, fingerprint taken. No torch.

    videos = open_dataset("glyphs", data_root=Path("data"), size="tiny")
    videos.splits["test"][0].path, videos.fingerprint

Layout of a data root:

    DATA_ROOT/glyphs-tiny/          rendered by harness.data.render (on first use)
    DATA_ROOT/activitynet/          list files and class file of a real set (names: harness.data.cards)
        frames/ or videos/          where the lists' paths start (else the folder itself)

Splits: a list per split where the set has one; `calib` is else the 10 % of train with the smallest
SHA-256 of their id, which then leave train; `val` is else the calibration videos (not test). No video is in
two splits, except that val and calib may share theirs (docs/data.md#no-video-in-two-splits).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.contract.values import plain
from harness.data.cards import CSV_PREFIX, SIZES, DatasetCard, Pipeline, dataset_card
from harness.data.check import Problem, describe, inspect, reason_of, remember_broken
from harness.data.decode import VideoInfo, passing
from harness.data.lists import (
    CsvTable,
    VideoEntry,
    first_existing,
    read_classes,
    read_csv,
    read_list,
    require_printable,
)
from harness.errors import DataError, UsageError, unknown

SPLITS = ("train", "calib", "val", "test")
APART = (("train", "calib"), ("train", "val"), ("train", "test"), ("calib", "test"), ("val", "test"))
"""Roles that share no video. Calibration and selection may: neither trains, neither is tested."""
CALIB_SHARE = 0.1
Splits = dict[str, tuple[VideoEntry, ...]]


@dataclass(frozen=True)
class VideoSet:
    """An opened dataset at one size."""

    card: DatasetCard
    """With class names and frame template as found on disk."""
    size: str
    splits: Mapping[str, tuple[VideoEntry, ...]]
    fingerprint: str
    """SHA-256 over ids, labels, split, decoder path and content of all videos, spatial pipeline, classes and card
    version; not over the frame request, nor over where the files lie (docs/data.md#identity)."""
    decoder: Mapping[str, int]
    """Decoder path -> number of videos."""
    missing: list[str] = field(default_factory=list)
    """Ids left out by --allow-missing."""
    dropped: list[str] = field(default_factory=list)
    """Ids shorter than the card's min_frames, left out as the published readers do."""
    duplicates: list[tuple[str, ...]] = field(default_factory=list)
    """Groups of videos of equal content, `SPLIT: ID` each."""
    untrained: list[str] = field(default_factory=list)
    """Classes without a training video."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Id -> identity of what the file holds."""
    data_root: Path | None = None
    """Where the results of checking are kept."""

    @property
    def resolution(self) -> int:
        """Side of the clips in pixels."""
        return self.card.geometry[self.size].crop

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.card.classes)

    @property
    def content(self) -> str:
        """One hash of what all files hold."""
        return hashlib.sha256(json.dumps(sorted(self.contents.items())).encode()).hexdigest()[:32]

    def refuse_overlap(self, *, train: str, calib: str, test: str, val: str | None = None) -> None:
        """Raise UsageError where a protocol's choice of splits would give one video two roles that stay apart.

        Args:
            train, calib, test: The splits that are trained on, calibrated on, tested.
            val: The split that checkpoints are selected on, where they are.
        """
        roles = {"train": train, "calib": calib, "test": test, "val": val}
        for split in roles.values():
            if split is not None and split not in self.splits:
                raise unknown("split", split, self.splits)
        known = _identities(self.card, self.splits, self.contents)
        for one, other in APART:
            a, b = roles[one], roles[other]
            shared = _shared(known[a], known[b]) if a is not None and b is not None else ()
            if shared:
                raise UsageError(f"{self.card.title}: {_named(shared)} would be used for {one} (the split {a}) and for "
                                 f"{other} (the split {b}); choose splits that have no video in common")

    def quarantine(self, entry: VideoEntry, error: DataError) -> DataError:
        """Remember that decoding found `entry` broken, unless the fault passes; the error to raise, with the remedy."""
        reason = reason_of(entry.path, error)
        if passing(error.__cause__):
            return DataError(f"{entry.id}: {reason}; it may be whole: see to memory, rights and disk, then run again")
        text = f"{entry.id}: {reason}; repair it"
        if remember_broken(entry.path, reason, self.data_root):
            text += f", or run again with --allow-missing {len(self.missing) + 1}, which leaves it out for every method"
        return DataError(text)


def open_dataset(
    name: str,
    *,
    data_root: Path | str,
    size: str,
    train: str | None = None,
    test: str | None = None,
    fold: str | None = None,
    allow_missing: int = 0,
    allow_absolute: bool = False,
    limit: int | None = None,
    pipeline: Pipeline = "harness",
    check: bool = True,
) -> VideoSet:
    """Open dataset `name` (an id, or `csv:PATH`).

    Args:
        name: Dataset id or `csv:PATH`.
        data_root: Folder of the datasets; of a CSV only the results of checking go there.
        size: tiny or paper.
        train, test: For `csv:`, `COLUMN=VALUE`; without them the column `split` (train, calib, val, test).
        fold: For `csv:`, `COLUMN=VALUE`: these rows are the test split, all others train.
        allow_missing: Up to this many broken videos are left out and listed instead of raising.
        allow_absolute: For `csv:`, absolute paths are accepted.
        limit: Only the first N videos of every split.
        pipeline: How stored frames become crops, see `harness.data.transforms`.
        check: Look at every file; without it frame counts and decoder paths may be unknown.

    Raises:
        UsageError: Unknown name, column or value, a selection for a set that has its own splits, or the authors'
            pipeline for an embedded set.
        DataError: A list is wrong, videos are broken (all of them are named), or a video is in two splits.
    """
    data_root = require_printable(Path(data_root))
    if pipeline == "authors" and dataset_card(name).kind == "embedded":
        raise UsageError(f"protocol.pipeline=authors is for real videos; {name} has a pipeline of its own")
    card, splits = listed(name, data_root=data_root, size=size, train=train, test=test, fold=fold,
                          allow_absolute=allow_absolute)
    if "all" in splits:
        raise UsageError(f"{card.title}: say which rows are train and which are test: --train COLUMN=VALUE --test "
                         "COLUMN=VALUE, --folds COLUMN, or a column named split with train and test")
    card = replace(card, pipeline=pipeline)
    if card.kind != "embedded":
        require_classes(card, splits)
    held_out = "calib" not in splits
    splits = {s: v[:limit] for s, v in with_held_out(card, splits).items()}
    infos: dict[str, VideoInfo] = {}
    problems: list[Problem] = []
    if check:
        entries = list({e.id: e for split in splits.values() for e in split}.values())
        infos, problems = inspect(entries, template=card.template, cache_dir=data_root)
        if len(problems) > allow_missing:
            raise DataError(describe(problems, card.title))
    splits, dropped = usable(card, splits, infos, {p.id for p in problems})
    contents = {i: info.content for i, info in infos.items()}
    if held_out:
        splits = copies_together(splits, contents)
    for split, chosen in splits.items():
        if not chosen:
            raise DataError(f"{card.title}: the {split} split has no usable video left")
    if limit is None:
        require_classes(card, splits)
    _require_apart(card, splits, contents)
    used = {e.id for chosen in splits.values() for e in chosen}
    decoder = Counter(info.decoder_path for i, info in infos.items() if i in used)
    return VideoSet(
        card, size, splits, _fingerprint(card, size, splits, infos), dict(sorted(decoder.items())),
        missing=[p.id for p in problems], dropped=dropped, duplicates=duplicates(splits, contents),
        untrained=untrained(card, splits), contents={i: contents[i] for i in sorted(used) if i in contents},
        data_root=data_root,
    )  # fmt: skip


def listed(
    name: str,
    *,
    data_root: Path | str,
    size: str,
    train: str | None = None,
    test: str | None = None,
    fold: str | None = None,
    allow_absolute: bool = False,
) -> tuple[DatasetCard, Splits]:
    """What the lists of a dataset name, before any video is looked at; arguments as of `open_dataset`.

    A CSV without a selection and without a column `split` gives all its rows as one split, `all`.
    """
    card = dataset_card(name)
    if size not in SIZES:
        raise UsageError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    if name.startswith(CSV_PREFIX):
        path = require_printable(Path(name.removeprefix(CSV_PREFIX)).absolute())
        return _from_csv(card, path, train, test, fold, allow_absolute)
    if train or test or fold:
        raise UsageError(f"{card.name} has its own splits; --train, --test and --folds are for csv:PATH")
    if card.kind == "embedded":
        return card, _embedded(card, size, Path(data_root))
    return _from_lists(card, Path(data_root) / card.name)


def usable(
    card: DatasetCard, splits: Splits, infos: Mapping[str, VideoInfo], broken: Set[str]
) -> tuple[Splits, list[str]]:
    """The splits without broken and too short videos, frame counts filled in; and the ids of those too short."""
    dropped: dict[str, None] = {}
    final: Splits = {}
    for split, entries in splits.items():
        kept = [replace(e, frames=infos[e.id].frames) if e.id in infos else e for e in entries if e.id not in broken]
        dropped.update((e.id, None) for e in kept if e.frames is not None and e.frames < card.min_frames)
        final[split] = tuple(e for e in kept if e.id not in dropped)
    return final, list(dropped)


def duplicates(splits: Splits, contents: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of `SPLIT: ID` that hold the same, within a split or over several; calib and val may be one."""
    groups: dict[str, list[str]] = {}
    for split, entries in splits.items():
        if split == "val" and entries == splits.get("calib"):
            continue
        for e in entries:
            if e.id in contents:
                groups.setdefault(contents[e.id], []).append(f"{split}: {e.id}")
    return [tuple(group) for group in groups.values() if len(group) > 1]


def untrained(card: DatasetCard, splits: Splits) -> list[str]:
    """Names of the classes without a training video."""
    trained = {label for e in splits["train"] for label in e.labels}
    return [name for i, name in enumerate(card.classes) if i not in trained]


def hold_out(entries: Sequence[VideoEntry], share: float = CALIB_SHARE) -> tuple[tuple[VideoEntry, ...], ...]:
    """Split into (kept, held out), in list order: the `share` with the smallest SHA-256 of their id, passing over
    videos without which a class would have no training video.
    """
    left = Counter(label for e in entries for label in e.labels)
    wanted, held = max(1, round(share * len(entries))), set[str]()
    for e in sorted(entries, key=lambda e: hashlib.sha256(e.id.encode()).digest()):
        if len(held) < wanted and all(left[label] > 1 for label in e.labels):
            held.add(e.id)
            left.subtract(e.labels)
    return tuple(e for e in entries if e.id not in held), tuple(e for e in entries if e.id in held)


def _from_csv(
    card: DatasetCard, path: Path, train: str | None, test: str | None, fold: str | None, allow_absolute: bool
) -> tuple[DatasetCard, Splits]:
    table = read_csv(path, allow_absolute=allow_absolute)
    card = replace(card, classes=table.classes, num_classes=len(table.classes))
    chosen = _selected(table, train, test, fold)
    if chosen is None:
        return card, {"all": table.entries}
    for split in ("train", "test"):
        if not chosen.get(split):
            raise UsageError(f"{table.path}: no video is left for the {split} split")
    both = set(chosen["train"]) & set(chosen["test"])
    if both:
        raise UsageError(f"{table.path}: {len(both)} videos are in train and test, for example "
                         f"{table.entries[min(both)].id}")
    return card, {s: tuple(table.entries[i] for i in which) for s, which in chosen.items()}


def _selected(table: CsvTable, train: str | None, test: str | None, fold: str | None) -> dict[str, list[int]] | None:
    """Row numbers by split, or None where neither the caller nor a column `split` says it."""
    rows = range(len(table.rows))
    if fold:
        if train or test:
            raise UsageError("--folds chooses both splits; drop --train and --test")
        tested = table.where(fold)
        return {"train": [i for i in rows if i not in set(tested)], "test": tested}
    if train and test:
        return {"train": table.where(train), "test": table.where(test)}
    if train or test:
        raise UsageError("--train and --test go together: --train COLUMN=VALUE --test COLUMN=VALUE")
    if "split" not in table.rows[0]:
        return None
    names = table.column("split")
    strange = sorted(set(names) - set(SPLITS))
    if strange:
        shown = ", ".join(map(repr, strange[:10]))
        raise UsageError(f"{table.path}: the column split holds {shown} ({sum(n in strange for n in names)} rows), it "
                         f"takes {', '.join(SPLITS)}; --train and --test COLUMN=VALUE choose rows by another column")
    return {s: [i for i in rows if names[i] == s] for s in SPLITS if s in names}


def _from_lists(card: DatasetCard, folder: Path) -> tuple[DatasetCard, Splits]:
    root = first_existing(folder, ("frames", "videos")) or folder
    splits = {}
    for split, names in card.splits.items():
        path = first_existing(folder, names)
        if path is None:
            raise DataError(f"{card.title}: no list of its {split} split; put {' or '.join(names)} into {folder} and "
                            f"the {'videos' if card.kind == 'videos' else 'frames'} below it")
        splits[split] = tuple(read_list(path, root, card))
    class_file = first_existing(folder, card.class_files)
    classes = read_classes(class_file) if class_file else tuple(f"class {i}" for i in range(card.num_classes))
    if len(classes) != card.num_classes:
        raise DataError(f"{class_file}: {len(classes)} classes, {card.title} has {card.num_classes}")
    return replace(card, classes=classes, templates=(_template(card, splits["train"]),)), splits


def _template(card: DatasetCard, entries: Sequence[VideoEntry]) -> str:
    """The accepted frame template that the first existing folder uses."""
    folder = next((e.path for e in entries if not e.is_video and e.path.is_dir()), None)
    found = (t for t in card.templates if folder is not None and (folder / t.format(1)).exists())
    return next(found, card.template)


def _embedded(card: DatasetCard, size: str, data_root: Path) -> Splits:
    from harness.data.render import read_manifest, render

    folder = render(card.name, size, data_root)
    videos = read_manifest(folder)["videos"]
    return {
        split: tuple(
            VideoEntry(v["id"], folder / v["id"], v["frames"], (v["label"],), v["sha256"]) for v in videos[split]
        )
        for split in SPLITS
    }


def require_classes(card: DatasetCard, splits: Splits) -> None:
    """A list that cannot be learnt from: refused where it is the user's own; of published ones it is disclosed."""
    if not card.name.startswith(CSV_PREFIX):
        return
    if len(card.classes) < 2:
        raise DataError(f"{card.title}: all videos are of one class, {card.classes[0]!r}; two or more are needed")
    names = untrained(card, splits)
    if names:
        shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise DataError(f"{card.title}: {len(names)} of {len(card.classes)} classes have no video in the train split "
                        f"that is whole and no copy of a calibration video: {shown}; add some, or leave these classes "
                        "out")


def with_held_out(card: DatasetCard, splits: Splits) -> Splits:
    """The four splits, `calib` held out of train where no list names it."""
    if "calib" not in splits:
        kept, held = hold_out(splits["train"])
        if not held:
            raise DataError(f"{card.title}: every class has one training video, none can be held out for calibration; "
                            "add videos, or name some in a split calib")
        splits = splits | {"train": kept, "calib": held}
    splits.setdefault("val", splits["calib"])
    return {s: splits[s] for s in SPLITS}


def copies_together(splits: Splits, contents: Mapping[str, str]) -> Splits:
    """Training videos that equal one that was held out join it."""
    held = {contents[e.id] for e in splits["calib"] if e.id in contents}
    joining = tuple(e for e in splits["train"] if contents.get(e.id) in held)
    if not joining:
        return splits
    calib = splits["calib"] + joining
    val = calib if splits["val"] == splits["calib"] else splits["val"]
    return splits | {"train": tuple(e for e in splits["train"] if e not in joining), "calib": calib, "val": val}


def overlaps(
    card: DatasetCard, splits: Splits, contents: Mapping[str, str]
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Pairs of splits that must be apart -> ids of the videos that they share; empty where the set is clean."""
    known = _identities(card, splits, contents)
    shared = {(a, b): _shared(known[a], known[b]) for a, b in APART if a in known and b in known}
    return {pair: same for pair, same in shared.items() if same}


def _require_apart(card: DatasetCard, splits: Splits, contents: Mapping[str, str]) -> None:
    for (one, other), shared in overlaps(card, splits, contents).items():
        raise DataError(f"{card.title}: {_named(shared)} in the {one} and in the {other} split; a video belongs to "
                        "one: remove it from the others (`bench.py data check` names them all)")


def _identities(
    card: DatasetCard, splits: Mapping[str, Sequence[VideoEntry]], contents: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """What makes a video the same, and its id, by split.

    The same is what has the same path, however it is spelled; in a user's own list what holds the same. The
    published lists have copies under several names, which are disclosed (`VideoSet.duplicates`), not refused.
    """
    own = contents if card.name.startswith(CSV_PREFIX) else {}
    return {s: {own.get(e.id) or os.path.normpath(e.id): e.id for e in entries} for s, entries in splits.items()}


def _shared(one: Mapping[str, str], other: Mapping[str, str]) -> list[tuple[str, str]]:
    """Ids of the same videos in two splits."""
    return [(name, other[identity]) for identity, name in one.items() if identity in other]


def _named(shared: Sequence[tuple[str, str]]) -> str:
    """How many videos, and the first few."""
    shown = ", ".join(a if a == b else f"{a} (as {b})" for a, b in shared[:5]) + (", ..." if len(shared) > 5 else "")
    return f"{len(shared)} video{'s' * (len(shared) > 1)} ({shown})"


def _fingerprint(card: DatasetCard, size: str, splits: Splits, infos: Mapping[str, VideoInfo]) -> str:
    pipeline = [card.version, card.classes, card.geometry[size], card.crop_family, card.flip, card.jitter, card.mean,
                card.std, card.template, *(["authors"] if card.pipeline == "authors" else [])]
    hasher = hashlib.sha256(json.dumps(plain(pipeline)).encode())
    for split in sorted(splits):
        for e in splits[split]:
            info = infos.get(e.id)
            seen = ["unchecked"] if info is None else [info.decoder_path, info.content]
            if card.kind == "embedded":  # the same pictures, whatever bytes an encoder makes of them
                seen = seen[:1]
            hasher.update(json.dumps([split, e.id, e.labels, *seen]).encode())
    return hasher.hexdigest()
