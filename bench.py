"""One harness in which efficient video-recognition methods are trained, evaluated and compared fairly.

    python bench.py list                      what there is
    python bench.py run quick                 data, training, evaluation, latency and report, in minutes
    python bench.py COMMAND --help

This file parses and calls; what a command does stands in `harness.commands` and `reports`, which are imported
only when a command needs them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from harness.commands.options import (
    DATA_ROOT,
    WORK_DIR,
    Checkpoint,
    DataRoot,
    Device,
    Engine,
    Json,
    Parts,
    Place,
    Resolution,
    Run,
    Sets,
    Size,
    TimingOptions,
    Videos,
    WeightsDir,
    WorkDir,
    new_file,
    new_folder,
    one_of,
)
from harness.commands.terminal import DEBUG, guarded
from harness.contract.declarations import ENGINES
from harness.contract.groups import MOST, grouped

app = typer.Typer(
    name="bench",
    help="One harness in which efficient video-recognition methods are trained, evaluated and compared fairly. "
    "Start with `list`, then `run quick`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error; stands anywhere.")] = False,
) -> None:
    """Help only: `guarded` reads the option, wherever it stands."""


data_app = typer.Typer(no_args_is_help=True, help="Render, check and describe data sets.")
app.add_typer(data_app, name="data")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets, suites or recipes; all when left out.")] = "all",
    as_json: Json = False,
) -> None:
    """Show methods, data sets, suites and recipes."""
    from harness.commands.listing import show

    show(what, as_json=as_json)


@app.command()
@grouped
def run(
    asked: Run,
    place: Place,
    videos: Videos,
    parts: Parts,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Train, evaluate, time and report; may be stopped at any moment and started again."""
    from harness.commands import run as command

    ran = command.run(asked, place, videos, parts, as_json=as_json, command=_command())
    code = ran.exit_code
    if report_ and ran.reportable:
        written = _report([place.work_dir], place.work_dir / "report", sys.stderr if as_json else sys.stdout)
        code = code if written else max(code, 1)
    raise typer.Exit(code)


@app.command("eval")
@grouped
def eval_(
    checkpoint: Checkpoint,
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Name, or csv:PATH.")],
    place: Place,
    videos: Videos,
    parts: Parts,
    sets: Sets = None,
    dump: Annotated[
        Path | None, typer.Option("--dump", callback=new_file, help="Write per-video logits, targets and costs (.npz).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a saved checkpoint at all its operating points, without training."""
    from harness.commands.evaluate import evaluate

    raise typer.Exit(
        evaluate(checkpoint, dataset, place, videos, parts, sets=sets, dump=dump, as_json=as_json, command=_command())
    )


@app.command()
@grouped
def predict(
    video: Annotated[Path, typer.Argument(help="Video file, or folder of JPEG frames.")],
    checkpoint: Checkpoint,
    place: Place,
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Whose pipeline and class names; the checkpoint's own.")
    ] = None,
    classes: Annotated[Path | None, typer.Option("--classes", help="File of class names, one per line.")] = None,
    point: Annotated[str | None, typer.Option("--point", help="Operating point, such as exit@0.30.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of an operating point instead: exit_at=3, frames=4.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", callback=new_folder, help="Where the picture and the film go.")
    ] = Path("predict"),
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes are told.")] = 5,
    data_root: DataRoot = DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Classify one video; a picture and a short .mp4 show where and when the method looked."""
    from harness.commands import predict as command
    from harness.data.encode import write_mp4
    from harness.measure.predict import shown
    from reports import overlay

    found = command.predict(
        video,
        checkpoint,
        place,
        sets=sets,
        dataset=dataset,
        classes=classes,
        point=point,
        top=top,
        data_root=data_root,
    )
    if as_json:
        files = [str(path) for path in overlay.paths(found, out)]
        print(json.dumps({**found.to_json(), "files": files}, indent=1), flush=True)
    else:
        print(found.to_text(), flush=True)
    for path in overlay.write(found, out, frames=shown, save_film=write_mp4):
        if not as_json:
            print(f"wrote {path}")


@app.command()
def report(
    work_dirs: Annotated[list[Path], typer.Argument(help="One or more folders of results.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", callback=new_folder, help="Where to write; REPORT in the first folder."),
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare across different fingerprints of a data set.")
    ] = False,
) -> None:
    """Tables, plots and one HTML page from records; runs nothing."""
    from reports import build

    for path in build(work_dirs, out or work_dirs[0] / "report", allow_mixed=allow_mixed):
        print(path)


@app.command()
def compare(
    work_dirs: Annotated[
        list[Path] | None,
        typer.Argument(help="With --methods: folders of results, ./results when left out. Without: two folders, A B."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "-m", help="Comma-separated: two or more methods, in pairs.")
    ] = None,
    at: Annotated[str, typer.Option("--at", help="What is made equal: gflops or latency.")] = "gflops",
    as_json: Json = False,
) -> None:
    """Which of two methods is better at equal cost, or what changed between two folders of results.

    compare --methods A,B [--at gflops|latency] [WORK_DIR...]: over videos and training seeds together, in one sentence
    per pair of methods and data set.

    compare DIR_A DIR_B: every method and point that both folders hold, B minus A.
    """
    from harness.commands.arguments import class_defaults
    from harness.contract.values import split_outside_brackets
    from harness.errors import UsageError
    from reports.compare import compare as compare_folders
    from reports.versus import versus

    if methods is not None:
        names = split_outside_brackets(methods)
        found: Any = versus(names, work_dirs or [WORK_DIR], at=at, defaults=class_defaults(names))
    elif work_dirs is None or len(work_dirs) != 2:
        raise UsageError("compare takes --methods A,B, or two folders of results")
    else:
        found = compare_folders(*work_dirs)
    print(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())


@app.command()
def gflops(
    method: Annotated[str | None, typer.Argument(help="Method whose parts are counted.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Measured beside published, for every published fixed cost.")
    ] = False,
    size: Size = "paper",
    resolution: Resolution = 224,
    classes: Annotated[int, typer.Option("--classes", min=1, max=MOST, help="Number of classes.")] = 200,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Count multiply-accumulates (GFLOPs = 1e9 MACs) of executed work, beside fvcore's count of its layers."""
    from harness.commands import gflops as command

    raise typer.Exit(
        command.gflops(
            method, paper=paper, size=size, resolution=resolution, classes=classes, sets=sets, as_json=as_json
        )
    )


@app.command()
@grouped
def latency(
    methods: Annotated[list[str], typer.Argument(help="Methods whose finished evaluations are timed.")],
    place: Place,
    timing: TimingOptions,
    as_json: Json = False,
) -> None:
    """Time evaluated methods on this machine, on real inputs, one after another under a machine lock."""
    from harness.commands import latency as command

    raise typer.Exit(command.latency(methods, place, timing, as_json=as_json, command=_command()))


@app.command()
def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint file of the authors.")],
    out: Annotated[Path, typer.Option("--out", callback=new_folder, help="Artifact folder to write.")],
    method: Annotated[
        str | None, typer.Option("--method", help="Method it must belong to; recognised when left out.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Turn an authors' checkpoint into our format (safetensors and settings).

    What no tensor tells is given with --set: patch_size=144, focus_frames=12.
    """
    from harness.commands import convert as command

    raise typer.Exit(command.convert(official, method, out, sets=sets))


@app.command()
def parity(
    pairs: Annotated[Path, typer.Argument(help="Folder of NAME.json + NAME.npz pairs.")], as_json: Json = False
) -> None:
    """Compare our networks with the authors' outputs; exits with 1 on any failure or unsupported pair."""
    from harness.commands import parity as command

    raise typer.Exit(command.parity(pairs, as_json=as_json))


@app.command()
def gate(
    against: Annotated[
        str | None, typer.Option("--against", help="Git revision: times old and new code interleaved.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "-m", help="Comma-separated names; all when left out.")
    ] = None,
    glue: Annotated[
        bool, typer.Option("--glue", help="At real size: a method's forward against its own components.")
    ] = False,
    device: Annotated[str | None, typer.Option("--device", help="With --glue: cpu, cuda or auto.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", callback=one_of("engine", ENGINES), help="With --glue: as in latency.")
    ] = None,
    store: Annotated[bool, typer.Option("--store", help="Store this machine's latencies as its baseline.")] = False,
    as_json: Json = False,
) -> None:
    """Fail when a method's latency got worse: significantly, and by more than 10 %; or when it has too much glue."""
    from harness.commands import gate as command

    raise typer.Exit(
        command.gate(against, methods, glue=glue, device=device, engine=engine, store=store, as_json=as_json)
    )


@app.command()
def doctor(
    work_dir: WorkDir = WORK_DIR, data_root: DataRoot = DATA_ROOT, weights_dir: WeightsDir = None, as_json: Json = False
) -> None:
    """Check versions, devices, codecs, disk and known breakages; each finding with its remedy."""
    from harness.commands import doctor as command

    raise typer.Exit(command.doctor(work_dir, data_root, weights_dir, as_json=as_json))


@app.command()
def profile(
    method: str,
    size: Size = "tiny",
    resolution: Resolution = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, max=1024, help="Videos per forward.")] = 1,
    device: Device = "auto",
    engine: Engine = "eager",
    out: Annotated[
        Path, typer.Option("--out", callback=new_folder, help="Where the torch.profiler trace goes.")
    ] = Path("profile"),
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Time per component of a method, and a torch.profiler trace."""
    from harness.commands import profile as command

    raise typer.Exit(
        command.profile(
            method,
            size=size,
            resolution=resolution,
            batch=batch,
            device=device,
            engine=engine,
            out=out,
            sets=sets,
            as_json=as_json,
        )
    )


@data_app.command("render")
def data_render(
    names: Annotated[list[str], typer.Argument(help="Embedded sets: glyphs, glyphs-motion.")],
    size: Size = "tiny",
    data_root: DataRoot = DATA_ROOT,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Side by side.")] = max(1, os.cpu_count() or 1),
) -> None:
    """Render embedded sets as H.264 .mp4 files, deterministic by seed."""
    from harness.commands.data import render_sets

    raise typer.Exit(render_sets(names, size=size, data_root=data_root, processes=processes))


@data_app.command("prepare")
def data_prepare(names: list[str], data_root: DataRoot = DATA_ROOT) -> None:
    """Say which files a real data set needs, where they go, and what is there already."""
    from harness.commands.data import prepare

    raise typer.Exit(prepare(names, data_root=data_root))


@data_app.command("check")
@grouped
def data_check(
    name: Annotated[str, typer.Argument(help="Data set, or csv:PATH.")],
    videos: Videos,
    full: Annotated[bool, typer.Option("--full", help="Decode every frame and compare counts.")] = False,
    size: Size = "tiny",
    as_json: Json = False,
) -> None:
    """Name every missing, empty, truncated or broken video of a data set."""
    from harness.commands.data import check_set

    raise typer.Exit(check_set(name, videos, full=full, size=size, as_json=as_json))


@data_app.command("stats")
@grouped
def data_stats(
    name: Annotated[str, typer.Argument(help="Data set, or csv:PATH.")],
    videos: Videos,
    size: Size = "tiny",
    as_json: Json = False,
) -> None:
    """Videos, classes, lengths, sizes and decoder paths of a data set."""
    from harness.commands.data import stats

    raise typer.Exit(stats(name, videos, size=size, as_json=as_json))


def _report(work_dirs: list[Path], out: Path, stream: TextIO) -> bool:
    """The report at the end of a run; where none can be made, an earlier page is not left to pass for it."""
    from harness.errors import BenchError
    from reports import build, set_aside

    try:
        written = build(work_dirs, out)
    except BenchError as error:
        print(f"no report: {error}", file=sys.stderr)
        for path in set_aside(out):
            print(f"the page of an earlier run is {path}", file=sys.stderr)
        return False
    for path in written:
        if path.name in ("index.html", "comparison.md"):
            print(f"report: {path}", file=stream)
    return True


def _command() -> str:
    return shlex.join(["bench.py", *sys.argv[1:]])


def main() -> None:
    """Run the command line; what goes wrong is one line, and a traceback only with `--debug`."""
    sys.exit(guarded(app, sys.argv[1:]))


if __name__ == "__main__":
    main()
