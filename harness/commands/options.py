"""Options of `bench.py` that stand in several commands, and the long list of `run`. No torch.

A group is a parameter of a command's function (harness.contract.groups): its fields become options.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from typer import Argument, CallbackParam, Option

from harness.contract.declarations import ENGINES
from harness.contract.groups import settings
from harness.data.cards import SIZES
from harness.errors import UsageError, unknown

P = TypeVar("P", bound=Path | None)
SIDES = {"min": 32, "max": 4096}
"""Sides in pixels that networks can take, and memory can hold."""


def folder(parameter: CallbackParam, path: P) -> P:
    """A folder that is there or could be; UsageError, which names the option, for any other path."""
    if path is not None and not (there := _nearest(path)).is_dir():
        raise UsageError(f"{_option(parameter)} {path}: {there} is no folder; name another one")
    return path


def new_folder(parameter: CallbackParam, path: P) -> P:
    """A folder that can be written, made where it is missing; UsageError for any other path."""
    folder(parameter, path)
    if path is not None:
        writable(_option(parameter), path)
    return path


def writable(option: str, path: Path) -> None:
    """Raise UsageError, which names the option, where nothing can be written into the folder `path`."""
    there = _nearest(path)
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: {there} cannot be written; name another folder")


def _nearest(path: Path) -> Path:
    """The path itself or the nearest parent that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if os.path.lexists(p))


def new_file(parameter: CallbackParam, path: P) -> P:
    """A file that can be written; UsageError, which names the option, for any other path."""
    if path is not None:
        if path.is_dir():
            raise UsageError(f"{_option(parameter)} {path} is a folder; name a file in it")
        new_folder(parameter, path.parent)
    return path


def readable_folder(parameter: CallbackParam, path: P) -> P:
    """A folder that is there; UsageError, which names the option, for any other path."""
    if path is not None and not path.is_dir():
        raise UsageError(f"{_option(parameter)} {path}: there is no such folder")
    return path


def one_of(kind: str, choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """What is among `choices`; UsageError with the nearest for anything else."""

    def known(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise unknown(kind, value, choices)
        return value

    return known


def finite(parameter: CallbackParam, value: float | None) -> float | None:
    """A number that is one, not infinite and not NaN."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{_option(parameter)} {value}: expected a finite number")
    return value


def _option(parameter: CallbackParam) -> str:
    return str(parameter.opts[0])


WorkDir = Annotated[Path, Option("--work-dir", "-w", callback=folder, help="Folder of artifacts, records and reports.")]
DataRoot = Annotated[
    Path, Option("--data-root", callback=folder, help="Folder of data sets; embedded ones are rendered there.")
]
WeightsDir = Annotated[Path | None, Option("--weights-dir", help="Folder with ImageNet weight files.")]
Device = Annotated[str, Option("--device", help="cpu, cuda or auto.")]
Checkpoint = Annotated[Path, Option("--checkpoint", help="Artifact folder or model.safetensors in one.")]
Size = Annotated[str, Option("--size", callback=one_of("size", SIZES), help="tiny or paper.")]
Resolution = Annotated[int, Option("--resolution", **SIDES, help="Side of the frames in pixels.")]
Engine = Annotated[
    str, Option("--engine", callback=one_of("engine", ENGINES), help="How components run: eager, compiled or graphs.")
]
Json = Annotated[bool, Option("--json", help="Print JSON for scripts.")]
Sets = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="KEY=VALUE: [METHOD.]SETTING, stage.[NAME.]FIELD or protocol.FIELD; repeatable. "
        "protocol.budget_unit=ms calibrates exits for time on this machine.",
    ),
]
Methods = Annotated[
    str | None, Option("--methods", "-m", help="Comma-separated names; NAME[setting=value,...] is a variant.")
]
QuietWait = Annotated[
    float, Option("--quiet-wait", min=0, callback=finite, help="Seconds that timing waits for a quiet machine, in all.")
]
WORK_DIR, DATA_ROOT = Path("results"), Path("data")


@settings
class Place:
    """Where work is done."""

    device: Device = "auto"
    work_dir: WorkDir = WORK_DIR


@settings
class Videos:
    """How a data set is found."""

    data_root: DataRoot = DATA_ROOT
    train: Annotated[str | None, Option("--train", help="csv: only: COLUMN=VALUE of the training videos.")] = None
    test: Annotated[str | None, Option("--test", help="csv: only: COLUMN=VALUE of the test videos.")] = None
    allow_absolute: Annotated[bool, Option("--allow-absolute", help="csv: only: accept absolute paths.")] = False


@settings
class Parts:
    """What of a data set is used."""

    limit: Annotated[int | None, Option("--limit", min=1, help="Only the first N videos of every split.")] = None
    allow_missing: Annotated[
        int, Option("--allow-missing", min=0, help="Leave out up to N broken videos, listed in the record.")
    ] = 0


@settings
class Run:
    """What `run` does, and how."""

    suite: Annotated[str | None, Argument(help="A name of `list suites`; or give --methods and --datasets.")] = None
    methods: Methods = None
    datasets: Annotated[
        str | None,
        Option("--datasets", "-d", help='Comma-separated names, or csv:PATH; "csv:PATH" in quotes may hold commas.'),
    ] = None
    everything: Annotated[bool, Option("--all", help="Every method of the zoo.")] = False
    size: Annotated[
        str | None,
        Option("--size", callback=one_of("size", SIZES), help="tiny or paper; the suite's when left out."),
    ] = None
    seeds: Annotated[int | None, Option("--seeds", min=1, max=1000, help="Number of training seeds.")] = None
    jobs: Annotated[
        int | None, Option("--jobs", "-j", min=1, help="Cells trained side by side; one per core when left out.")
    ] = None
    folds: Annotated[
        str | None, Option("--folds", help="csv: only: cross-validate over the values of this column.")
    ] = None
    epochs: Annotated[int | None, Option("--epochs", min=1, help="Epochs of every own stage of the methods.")] = None
    weights_dir: Annotated[
        Path | None,
        Option("--weights-dir", callback=readable_folder, help="Folder with ImageNet weight files."),
    ] = None
    sets: Sets = None
    timeout: Annotated[
        float | None, Option("--timeout", min=1, callback=finite, help="End a job after this many seconds.")
    ] = None
    batches: Annotated[str, Option("--batches", help="Batch sizes that are timed; empty: no latency.")] = "1,16"
    quiet_wait: QuietWait = 60.0
    force: Annotated[bool, Option("--force", help="Do finished work again; what is there is set aside.")] = False
    keep_stale: Annotated[
        bool, Option("--keep-stale", help="Keep results, and go on with trainings, of other code, device or packages.")
    ] = False
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be done.")] = False


@settings
class TimingOptions:
    """How `latency` times."""

    batch: Annotated[str, Option("--batch", help="Comma-separated batch sizes.")] = "1,16"
    mode: Annotated[str, Option("--mode", help="Comma-separated: batch, file, stream.")] = "batch"
    end_to_end: Annotated[
        bool, Option("--end-to-end", help="Also from file to logits, decoding what is asked for: mode file.")
    ] = False
    max_wait: Annotated[
        float,
        Option("--max-wait", min=0, callback=finite, help="Mode stream: seconds after which a video waits no more."),
    ] = 60.0
    dtype: Annotated[str, Option("--dtype", help="float32, bfloat16 or float16.")] = "float32"
    engine: Engine = "eager"
    memory_format: Annotated[str, Option("--memory-format", help="channels_last or contiguous.")] = "channels_last"
    threads: Annotated[int, Option("--threads", min=1, help="Torch threads.")] = 1
    point: Annotated[str | None, Option("--point", help="Only this operating point.")] = None
    min_seconds: Annotated[
        float,
        Option(
            "--min-seconds",
            min=0,
            callback=finite,
            help="Time spent in timed forwards of each point and batch, at least.",
        ),
    ] = 1.0
    launches: Annotated[int, Option("--launches", min=1, help="Fresh processes that each time everything.")] = 3
    quiet_wait: QuietWait = 60.0
