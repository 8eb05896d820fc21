"""Open a dataset: lists read, videos checked, splits fixed, fingerprint taken. No torch.

    videos = open_dataset("glyphs", data_root=Path("data"), size="tiny")
    videos.splits["test"][0].path, videos.fingerprint

Layout of a data root:

    DATA_ROOT/glyphs-tiny/          rendered by harness.data.render (on first use)
    DATA_ROOT/activitynet/          list files and class file of a real set (names: harness.data.cards)
        frames/ or videos/          where the lists' paths start (else the folder itself)

Splits: a list per split where the set has one; `calib` is else the 10 % of train with the smallest
SHA-256 of their id, which then leave train; `val` is else the calibration videos (not test).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.contract.values import plain
from harness.data.cards import CSV_PREFIX, SIZES, DatasetCard, dataset_card
from harness.data.check import Problem, describe, inspect
from harness.data.decode import VideoInfo
from harness.data.lists import CsvTable, VideoEntry, first_existing, read_classes, read_csv, read_list
from harness.errors import DataError, UsageError

SPLITS = ("train", "calib", "val", "test")
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
    """SHA-256 over ids, labels, split, decoder path, spatial pipeline, classes and card version; not over
    the frame request."""
    decoder: Mapping[str, int]
    """Decoder path -> number of videos."""
    missing: list[str] = field(default_factory=list)
    """Ids left out by --allow-missing."""
    dropped: list[str] = field(default_factory=list)
    """Ids shorter than the card's min_frames, left out as the published readers do."""

    @property
    def resolution(self) -> int:
        """Side of the clips in pixels."""
        return self.card.geometry[self.size].crop

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.card.classes)


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
        check: Look at every file; without it frame counts and decoder paths may be unknown.

    Raises:
        UsageError: Unknown name, column or value, or a selection for a set that has its own splits.
        DataError: A list is wrong, or videos are broken (all of them are named).
    """
    data_root = Path(data_root)
    card, splits = listed(name, data_root=data_root, size=size, train=train, test=test, fold=fold,
                          allow_absolute=allow_absolute)
    if "all" in splits:
        raise UsageError(f"{card.title}: say which rows are train and which are test: --train COLUMN=VALUE --test "
                         "COLUMN=VALUE, --folds COLUMN, or a column named split with train and test")
    splits = {s: v[:limit] for s, v in _with_held_out(splits).items()}
    return _checked(card, size, splits, data_root, allow_missing) if check else _finish(card, size, splits, {})


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
        return _from_csv(card, train, test, fold, allow_absolute)
    if train or test or fold:
        raise UsageError(f"{card.name} has its own splits; --train, --test and --folds are for csv:PATH")
    if card.kind == "embedded":
        return card, _embedded(card, size, Path(data_root))
    return _from_lists(card, Path(data_root) / card.name)


def hold_out(entries: Sequence[VideoEntry], share: float = CALIB_SHARE) -> tuple[tuple[VideoEntry, ...], ...]:
    """Split into (kept, held out): the `share` with the smallest SHA-256 of their id, in list order."""
    ranked = sorted(entries, key=lambda e: hashlib.sha256(e.id.encode()).digest())
    held = {e.id for e in ranked[: max(1, round(share * len(entries)))]}
    return tuple(e for e in entries if e.id not in held), tuple(e for e in entries if e.id in held)


def _from_csv(
    card: DatasetCard, train: str | None, test: str | None, fold: str | None, allow_absolute: bool
) -> tuple[DatasetCard, Splits]:
    table = read_csv(Path(card.name.removeprefix(CSV_PREFIX)), allow_absolute=allow_absolute)
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
        split: tuple(VideoEntry(v["id"], folder / v["id"], v["frames"], (v["label"],)) for v in videos[split])
        for split in SPLITS
    }


def _with_held_out(splits: Splits) -> Splits:
    if "calib" not in splits:
        if len(splits["train"]) < 2:
            raise DataError("the train split needs at least two videos: one is held out for calibration")
        splits = dict(zip(("train", "calib"), hold_out(splits["train"]), strict=True)) | {
            s: v for s, v in splits.items() if s != "train"
        }
    splits.setdefault("val", splits["calib"])
    return {s: splits[s] for s in SPLITS}


def _checked(card: DatasetCard, size: str, splits: Splits, data_root: Path, allow_missing: int) -> VideoSet:
    entries = list({e.id: e for split in splits.values() for e in split}.values())
    infos, problems = inspect(entries, template=card.template, cache_dir=data_root)
    if len(problems) > allow_missing:
        raise DataError(describe(problems, card.title))
    return _finish(card, size, splits, infos, problems)


def _finish(
    card: DatasetCard, size: str, splits: Splits, infos: Mapping[str, VideoInfo], problems: Sequence[Problem] = ()
) -> VideoSet:
    """Leave out what cannot be used, fill in frame counts, take the fingerprint."""
    bad = {p.id for p in problems}
    dropped: dict[str, None] = {}
    final: Splits = {}
    for split, entries in splits.items():
        kept = [replace(e, frames=infos[e.id].frames) if e.id in infos else e for e in entries if e.id not in bad]
        dropped.update((e.id, None) for e in kept if e.frames is not None and e.frames < card.min_frames)
        final[split] = tuple(e for e in kept if e.id not in dropped)
        if not final[split]:
            raise DataError(f"{card.title}: the {split} split has no usable video left")
    decoder = Counter(infos[i].decoder_path for i in {e.id for v in final.values() for e in v} if i in infos)
    return VideoSet(
        card, size, final, _fingerprint(card, size, final, infos), dict(sorted(decoder.items())),
        [p.id for p in problems], list(dropped),
    )


def _fingerprint(card: DatasetCard, size: str, splits: Splits, infos: Mapping[str, VideoInfo]) -> str:
    pipeline = [card.version, card.classes, card.geometry[size], card.crop_family, card.flip, card.jitter, card.mean,
                card.std, card.template]
    hasher = hashlib.sha256(json.dumps(plain(pipeline)).encode())
    for split in sorted(splits):
        for e in splits[split]:
            path = infos[e.id].decoder_path if e.id in infos else "unchecked"
            hasher.update(json.dumps([split, e.id, e.labels, path]).encode())
    return hasher.hexdigest()
