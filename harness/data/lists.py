"""Reading split lists: the published `path frames label` files and a user's CSV. No torch.

Line formats (docs/data.md#lists), comma, semicolon or space separated:

    path frames label [label2 [label3]]     frame folders
    path.mp4 label [label2 ...]             video files

A path may hold spaces where the set has one label per video. All files are text in UTF-8, a byte order mark is
accepted.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.cards import DatasetCard
from harness.errors import DataError, UsageError, did_you_mean

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts")
_VIDEO_LINE = re.compile(rf"(.*?(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))[\s,;]+([\d\s,;]+)$", re.IGNORECASE)


@dataclass(frozen=True)
class VideoEntry:
    """One labelled video: a file, or a folder of JPEG frames."""

    id: str
    """Path as written in the list: unique within the dataset."""
    path: Path
    frames: int | None
    """Number of decodable frames; before checking, what the list says, if it says so."""
    labels: tuple[int, ...]
    """Class indices, ascending; training uses the first."""
    sha256: str | None = None
    """Of the file, where a manifest states it."""

    @property
    def is_video(self) -> bool:
        """Whether this is a video file (else a frame folder)."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class CsvTable:
    """A user's CSV: rows as read, entries in the same order, and class names by index."""

    path: Path
    rows: tuple[Mapping[str, str], ...]
    entries: tuple[VideoEntry, ...]
    classes: tuple[str, ...]

    def column(self, name: str) -> list[str]:
        """All values of a column; an unknown column raises UsageError with the nearest."""
        if name not in self.rows[0]:
            raise UsageError(f"{self.path} has no column {name!r}{did_you_mean(name, self.rows[0])}; "
                             f"columns: {', '.join(self.rows[0])}")
        return [row[name] for row in self.rows]

    def where(self, condition: str) -> list[int]:
        """Row numbers that meet `COLUMN=VALUE`; no such row raises UsageError."""
        column, equals, value = condition.partition("=")
        if not equals:
            raise UsageError(f"{condition!r}: expected COLUMN=VALUE")
        values = self.column(column)
        found = [i for i, v in enumerate(values) if v == value]
        if not found:
            known = ", ".join(sorted(set(values))[:20])
            raise UsageError(f"{self.path}: no row has {column}={value}; values of {column}: {known}")
        return found


def read_list(path: Path, root: Path, card: DatasetCard) -> list[VideoEntry]:
    """Read a published split list; paths are relative to `root`.

    Raises DataError naming file and line for anything that does not fit the card.
    """
    entries, seen = [], _Seen(path)
    for number, line in enumerate(read_text(path, "it holds one video per line").splitlines(), 1):
        if not line.strip():
            continue
        try:
            name, frames, labels = parse_line(line, card.multi_label)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}: {line!r}") from None
        if not all(0 <= label < card.num_classes for label in labels):
            raise DataError(f"{path}:{number}: label outside 0..{card.num_classes - 1} of {card.title}: {line!r}")
        seen.add(name, number)
        entries.append(VideoEntry(name, inside(root, name, f"{path}:{number}"), frames, labels))
    if not entries:
        raise DataError(f"{path} lists no video")
    return entries


def parse_line(line: str, multi_label: bool) -> tuple[str, int | None, tuple[int, ...]]:
    """Split a list line into (path, frames or None, labels); raises ValueError saying what is missing."""
    text = line.strip()
    separator = next((s for s in ",;" if s in text), None)
    video = _VIDEO_LINE.match(text) if "." in text else None
    if video:
        name, numbers = video[1], [int(n) for n in re.findall(r"\d+", video[2])]
        return name, None, _labels(numbers, multi_label)
    if separator or multi_label:
        name, *fields = [f.strip() for f in text.split(separator)]
    else:
        name, *fields = text.rsplit(None, 2)
    if len(fields) < 2 or not name:
        raise ValueError("expected `path frames label`")
    try:
        numbers = [int(f) for f in fields if f]
    except ValueError:
        raise ValueError("frames and labels must be whole numbers") from None
    return name, numbers[0], _labels(numbers[1:], multi_label)


def _labels(numbers: Sequence[int], multi_label: bool) -> tuple[int, ...]:
    labels = tuple(sorted({n for n in numbers if n != -1}))
    if not labels:
        raise ValueError("no label")
    if len(labels) > (3 if multi_label else 1):
        raise ValueError(f"{len(labels)} labels")
    return labels


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names by index from `name` or `index,name` lines; indices must count from 0.

    Raises DataError naming a file that is no text, holds no name, or does not count.
    """
    text = read_text(path, "it holds one class name per line")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path}: is empty; it holds one class name per line")
    numbered = [re.match(r"(\d+)[,;]\s*(.+)", line) for line in lines]
    if not all(numbered):
        return tuple(lines)
    if [int(m[1]) for m in numbered if m] != list(range(len(lines))):
        raise DataError(f"{path}: the class numbers do not count from 0 in steps of one")
    return tuple(m[2] for m in numbered if m)


def read_csv(path: Path, *, allow_absolute: bool = False) -> CsvTable:
    """Read a CSV with columns `path` and `label` (class index or name), optionally `class` and `frames`.

    Paths are relative to the CSV's folder and may not leave it (lexically; symbolic links are followed).
    Raises DataError naming the file, and the line where there is one.
    """
    what = "csv:PATH names a CSV file with columns path and label"
    if not path.exists():
        raise DataError(f"{path} does not exist; {what}")
    columns, rows = _csv_rows(path, read_text(path, what))
    label = "label" if "label" in columns else "class"
    if "path" not in columns or label not in columns:
        raise DataError(f"{path}: needs the columns path and label, has {', '.join(columns) or 'none'}")
    if len(set(columns)) < len(columns):
        twice = sorted({c for c in columns if columns.count(c) > 1})
        raise DataError(f"{path}:1: the header names {', '.join(map(repr, twice))} twice; a column has one name")
    if not rows:
        raise DataError(f"{path} lists no video")
    for number, row in enumerate(rows, 2):
        if not (row["path"] or "").strip() or None in row or None in row.values():
            raise DataError(f"{path}:{number}: the line does not have the header's {len(columns)} fields")
    classes = _csv_classes(path, rows, label)
    index = {name: i for i, name in enumerate(classes)}
    numeric = all(row[label].strip().isdecimal() for row in rows)
    entries, seen = [], _Seen(path)
    for number, row in enumerate(rows, 2):
        name = row["path"].strip()
        seen.add(name, number)
        where = inside(path.parent, name, f"{path}:{number}", allow_absolute=allow_absolute)
        frames = row.get("frames", "").strip()
        if frames and not (frames.isdecimal() and 0 < len(frames) < 10):
            raise DataError(f"{path}:{number}: frames takes a number, not {frames!r}; the column may be left out")
        value = int(row[label]) if numeric else index[row[label].strip()]
        entries.append(VideoEntry(name, where, int(frames) if frames else None, (value,)))
    return CsvTable(path, rows, tuple(entries), classes)


def read_text(path: Path, what: str) -> str:
    """A text file in UTF-8, without its byte order mark; anything else raises DataError that says `what` it is."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, not a file; {what}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in UTF-8; {what}: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; {what}") from None
    if "\0" in text:
        raise DataError(f"{path}: holds NUL bytes, which no text has; {what}")
    return text


def _csv_rows(path: Path, text: str) -> tuple[list[str], tuple[dict[str, str], ...]]:
    """Columns and rows; the text has been read whole, since a quoted field may hold line ends."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        return list(reader.fieldnames or []), tuple(reader)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: {error}; is a quotation mark not closed?") from None


class _Seen:
    """Refuses a list that names a video twice, also by another spelling of its path."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, dict[str, tuple[int, str]]()

    def add(self, name: str, number: int) -> None:
        line, before = self.lines.setdefault(os.path.normpath(name), (number, name))
        if line != number:
            spelled = "" if before == name else f" as {before!r}"
            raise DataError(f"{self.path}:{number}: {name!r} is listed twice (line {line}{spelled})")


def _csv_classes(path: Path, rows: Sequence[Mapping[str, str]], label: str) -> tuple[str, ...]:
    """Names by index: sorted names, or for numeric labels those of the `class` column."""
    values = [row[label].strip() for row in rows]
    if not all(values):
        raise DataError(f"{path}:{values.index('') + 2}: no label")
    if not all(v.isdecimal() for v in values):
        return tuple(sorted(set(values)))
    _require_consecutive(path, values)
    names = {int(v): v for v in values}
    if label == "label" and "class" in rows[0]:
        for number, (value, row) in enumerate(zip(values, rows, strict=True), 2):
            name = row["class"].strip() or value
            if names[int(value)] not in (value, name):
                raise DataError(f"{path}:{number}: label {value} is called {name!r}, before {names[int(value)]!r}")
            names[int(value)] = name
    found = tuple(names[i] for i in range(len(names)))
    if len(set(found)) < len(found):
        name = next(n for n in found if found.count(n) > 1)
        raise DataError(f"{path}: labels {', '.join(str(i) for i, n in enumerate(found) if n == name)} are all called "
                        f"{name!r}; a class has one label")
    return found


def _require_consecutive(path: Path, values: Sequence[str]) -> None:
    """Labels are class indices: each number below the largest is one."""
    largest = max(values, key=lambda v: (len(v.lstrip("0")), v.lstrip("0")))
    number = len({v.lstrip("0") for v in values})
    if len(largest) < 10 and int(largest) == number - 1:
        return
    line = values.index(largest) + 2
    shown = largest if len(largest) < 20 else f"{largest[:17]}..."
    raise DataError(f"{path}:{line}: label {shown} among {number} different labels: label numbers count the classes "
                    "from 0 without gaps; number them anew, or give names instead of numbers in the column label")


def unlike(number: int, known: Sequence[str], found: Sequence[str]) -> str | None:
    """How the classes of a data set (`found`) differ from the `number` classes of a checkpoint, whose names may not be
    known (empty); None where nothing speaks against them.
    """
    if number != len(found):
        return f"it knows {number} classes, the data have {len(found)}"
    if not known or list(known) == list(found):
        return None
    place, (one, other) = next((i, pair) for i, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1])
    how = "the same names in another order" if sorted(known) == sorted(found) else "other names"
    return f"the data have {how}: class {place} is {one!r} to the checkpoint, {other!r} in the data"


def inside(root: Path, name: str, where: str, *, allow_absolute: bool = False) -> Path:
    """`root / name`, refused lexically where it leaves `root`; `where` names the list's line."""
    relative = Path(name)
    if relative.is_absolute():
        if allow_absolute:
            return relative
        raise DataError(f"{where}: absolute path {name!r}; pass --allow-absolute if you trust this list")
    depth = 0
    for part in relative.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise DataError(f"{where}: {name!r} leaves the data folder {root}")
    return root / relative


def fold_values(path: Path, column: str) -> list[str]:
    """The values of a fold column of a CSV, numbers in numeric order."""
    values = set(read_csv(path, allow_absolute=True).column(column))
    return sorted(values, key=lambda v: (not v.isdecimal(), len(v.lstrip("0")) if v.isdecimal() else 0, v))


def require_printable(path: Path) -> Path:
    """`path`, whose name must be text: it goes into keys, records and pages."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(f"{str(path)!a}: the name is not text in UTF-8; rename the file or folder") from None
    return path


def first_existing(root: Path, names: Iterable[str]) -> Path | None:
    """The first of `names` that exists below `root`."""
    return next((root / name for name in names if (root / name).exists()), None)
