"""One harness in which efficient video-recognition methods are trained, evaluated and compared fairly.

    python bench.py list                      what there is
    python bench.py run quick                 data, training, evaluation, latency and report, in minutes
    python bench.py COMMAND --help

This file parses, calls and prints; the work is done in `harness` and `reports`, which are imported only
when a command needs them.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

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
data_app = typer.Typer(no_args_is_help=True, help="Render, check and describe data sets.")
app.add_typer(data_app, name="data")

WorkDir = Annotated[Path, typer.Option("--work-dir", "-w", help="Folder of artifacts, records and reports.")]
DataRoot = Annotated[Path, typer.Option("--data-root", help="Folder of data sets; embedded ones are rendered there.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
WeightsDir = Annotated[Path | None, typer.Option("--weights-dir", help="Folder with ImageNet weight files.")]
Train = Annotated[str | None, typer.Option("--train", help="csv: only: COLUMN=VALUE of the training videos.")]
Test = Annotated[str | None, typer.Option("--test", help="csv: only: COLUMN=VALUE of the test videos.")]
AllowMissing = Annotated[
    int, typer.Option("--allow-missing", help="Leave out up to N broken videos, listed in the record.")
]
AllowAbsolute = Annotated[bool, typer.Option("--allow-absolute", help="csv: only: accept absolute paths.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N videos of every split.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: [METHOD.]SETTING, stage.[NAME.]FIELD or protocol.FIELD; repeatable."),
]
WORK_DIR, DATA_ROOT = Path("results"), Path("data")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, datasets, suites or recipes; all when left out.")] = "all",
    as_json: Json = False,
) -> None:
    """Show methods, data sets, suites and recipes."""
    from harness.listing import listing

    found = listing(what)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for title, rows in found.items():
        print(f"{title}:")
        width = max((len(name) for name in rows), default=0)
        for name, text in rows.items():
            print(f"  {name:{width}}  {text}")


@app.command()
def run(
    suite: Annotated[
        str | None, typer.Argument(help="A name of `list suites`; or give --methods and --datasets.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "-m", help="Comma-separated names; NAME[setting=value,...] is a variant.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option("--datasets", "-d", help="Comma-separated names, or csv:PATH.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every method of the zoo.")] = False,
    size: Annotated[str | None, typer.Option("--size", help="tiny or paper.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Number of training seeds.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Cells trained side by side; one per core when left out.")
    ] = None,
    device: Device = "auto",
    work_dir: WorkDir = WORK_DIR,
    data_root: DataRoot = DATA_ROOT,
    weights_dir: WeightsDir = None,
    train: Train = None,
    test: Test = None,
    folds: Annotated[
        str | None, typer.Option("--folds", help="csv: only: cross-validate over the values of this column.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Epochs of every own stage of the methods.")
    ] = None,
    set_: Sets = None,
    limit: Limit = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="End a job after this many seconds.")
    ] = None,
    allow_missing: AllowMissing = 0,
    allow_absolute: AllowAbsolute = False,
    batches: Annotated[str, typer.Option("--batches", help="Batch sizes that are timed; empty: no latency.")] = "1,16",
    force: Annotated[bool, typer.Option("--force", help="Do finished work again.")] = False,
    keep_stale: Annotated[
        bool, typer.Option("--keep-stale", help="Keep results although their code has changed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done.")] = False,
    report_: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
    as_json: Json = False,
) -> None:
    """Train, evaluate, time and report; may be stopped at any moment and started again."""
    from harness import cli

    request = cli.request(
        suite,
        methods,
        datasets,
        everything,
        size,
        seeds,
        jobs=jobs,
        device=device,
        work_dir=work_dir,
        data_root=data_root,
        weights_dir=weights_dir,
        train=train,
        test=test,
        folds=folds,
        epochs=epochs,
        sets=set_ or (),
        limit=limit,
        timeout=timeout,
        allow_missing=allow_missing,
        allow_absolute=allow_absolute,
        batches=batches,
        force=force,
        keep_stale=keep_stale,
        command=_command(),
    )
    outcome = cli.run(request, dry_run=dry_run, as_json=as_json)
    if report_ and outcome.reportable:
        _report([work_dir], work_dir / "report", sys.stderr if as_json else sys.stdout)
    raise typer.Exit(outcome.exit_code)


@app.command("eval")
def eval_(
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Artifact folder or model.safetensors in one.")],
    dataset: Annotated[str, typer.Option("--dataset", "-d", help="Name, or csv:PATH.")],
    dump: Annotated[
        Path | None, typer.Option("--dump", help="Write per-video logits, targets and costs (.npz).")
    ] = None,
    device: Device = "auto",
    work_dir: WorkDir = WORK_DIR,
    data_root: DataRoot = DATA_ROOT,
    train: Train = None,
    test: Test = None,
    set_: Sets = None,
    limit: Limit = None,
    allow_missing: AllowMissing = 0,
    allow_absolute: AllowAbsolute = False,
    as_json: Json = False,
) -> None:
    """Evaluate a saved checkpoint at all its operating points, without training."""
    from harness import cli

    raise typer.Exit(
        cli.evaluate(
            checkpoint,
            dataset,
            dump=dump,
            device=device,
            work_dir=work_dir,
            data_root=data_root,
            train=train,
            test=test,
            sets=set_ or (),
            limit=limit,
            allow_missing=allow_missing,
            allow_absolute=allow_absolute,
            as_json=as_json,
            command=_command(),
        )
    )


@app.command()
def predict(
    video: Annotated[Path, typer.Argument(help="Video file, or folder of JPEG frames.")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", help="Artifact folder or model.safetensors in one.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", "-d", help="Whose pipeline and class names; the checkpoint's own.")
    ] = None,
    classes: Annotated[Path | None, typer.Option("--classes", help="File of class names, one per line.")] = None,
    point: Annotated[str | None, typer.Option("--point", help="Operating point, such as exit@0.30.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of an operating point instead: exit_at=3, frames=4.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the picture and the film go.")] = Path("predict"),
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes are told.")] = 5,
    device: Device = "auto",
    work_dir: WorkDir = WORK_DIR,
    data_root: DataRoot = DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Classify one video; a picture and a short .mp4 show where and when the method looked."""
    from harness.cli import resolve_device
    from harness.data.encode import write_mp4
    from harness.predict import point_settings, shown
    from harness.predict import predict as classify
    from reports import overlay

    found = classify(
        video,
        checkpoint,
        dataset=dataset,
        classes=classes,
        point=point,
        settings=point_settings(set_ or ()),
        top=top,
        device=resolve_device(device),
        work_dir=work_dir,
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write; REPORT in the first folder.")] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Compare across different fingerprints of a data set.")
    ] = False,
) -> None:
    """Tables, plots and one HTML page from records; runs nothing."""
    from reports import build

    for path in build(work_dirs, out or work_dirs[0] / "report", allow_mixed=allow_mixed):
        print(path)


@app.command()
def compare(a: Path, b: Path, as_json: Json = False) -> None:
    """What changed from results A to results B: paired per video, with significance."""
    from reports.compare import compare as compare_folders

    found = compare_folders(a, b)
    print(json.dumps(found.to_json(), indent=1) if as_json else found.to_text())


@app.command()
def gflops(
    method: Annotated[str | None, typer.Argument(help="Method whose parts are counted.")] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Measured beside published, for every published fixed cost.")
    ] = False,
    size: Annotated[str, typer.Option("--size")] = "paper",
    resolution: Annotated[int, typer.Option("--resolution")] = 224,
    classes: Annotated[int, typer.Option("--classes")] = 200,
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Count multiply-accumulates (GFLOPs = 1e9 MACs) of executed work."""
    from harness import tools

    raise typer.Exit(
        tools.gflops(
            method, paper=paper, size=size, resolution=resolution, classes=classes, sets=set_ or (), as_json=as_json
        )
    )


@app.command()
def latency(
    methods: Annotated[list[str], typer.Argument(help="Methods whose finished evaluations are timed.")],
    batch: Annotated[str, typer.Option("--batch", help="Comma-separated batch sizes.")] = "1,16",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    compile_: Annotated[
        str | None, typer.Option("--compile", help="Mode of torch.compile; eager when left out.")
    ] = None,
    memory_format: Annotated[
        str, typer.Option("--memory-format", help="channels_last or contiguous.")
    ] = "channels_last",
    threads: Annotated[int, typer.Option("--threads")] = 1,
    point: Annotated[
        str | None, typer.Option("--point", help="Operating point; the default and half cost when left out.")
    ] = None,
    min_seconds: Annotated[float, typer.Option("--min-seconds")] = 1.0,
    device: Device = "auto",
    work_dir: WorkDir = WORK_DIR,
    as_json: Json = False,
) -> None:
    """Time evaluated methods on this machine, on real inputs, one after another under a machine lock."""
    from harness import cli

    raise typer.Exit(
        cli.latency(
            methods,
            batch=batch,
            dtype=dtype,
            compile_mode=compile_,
            memory_format=memory_format,
            threads=threads,
            point=point,
            min_seconds=min_seconds,
            device=device,
            work_dir=work_dir,
            as_json=as_json,
            command=_command(),
        )
    )


@app.command()
def convert(
    official: Annotated[Path, typer.Argument(help="Checkpoint file of the authors.")],
    out: Annotated[Path, typer.Option("--out", help="Artifact folder to write.")],
    method: Annotated[
        str | None, typer.Option("--method", help="Method it must belong to; recognised when left out.")
    ] = None,
    set_: Sets = None,
) -> None:
    """Turn an authors' checkpoint into our format (safetensors and settings).

    What no tensor tells is given with --set: patch_size=144, focus_frames=12.
    """
    from harness import tools

    raise typer.Exit(tools.convert(official, method, out, sets=set_ or ()))


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="Folder of NAME.json + NAME.npz pairs.")], as_json: Json = False
) -> None:
    """Compare our networks with the authors' outputs; exits with 1 on any failure or unsupported pair."""
    from harness import tools

    raise typer.Exit(tools.parity(folder, as_json=as_json))


@app.command()
def gate(
    against: Annotated[
        str | None, typer.Option("--against", help="Git revision: times old and new code interleaved.")
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", "-m", help="Comma-separated names; all when left out.")
    ] = None,
    store: Annotated[bool, typer.Option("--store", help="Store this machine's latencies as its baseline.")] = False,
    as_json: Json = False,
) -> None:
    """Fail when a method's latency got worse: significantly, and by more than 10 %."""
    from harness import tools

    raise typer.Exit(tools.gate(against, methods, store=store, as_json=as_json))


@app.command()
def doctor(
    work_dir: WorkDir = WORK_DIR, data_root: DataRoot = DATA_ROOT, weights_dir: WeightsDir = None, as_json: Json = False
) -> None:
    """Check versions, devices, codecs, disk and known breakages; each finding with its remedy."""
    from harness import tools

    raise typer.Exit(tools.doctor(work_dir, data_root, weights_dir, as_json=as_json))


@app.command()
def profile(
    method: str,
    size: Annotated[str, typer.Option("--size")] = "tiny",
    resolution: Annotated[int, typer.Option("--resolution")] = 64,
    batch: Annotated[int, typer.Option("--batch")] = 1,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where the torch.profiler trace goes.")] = Path("profile"),
    set_: Sets = None,
    as_json: Json = False,
) -> None:
    """Time per component of a method, and a torch.profiler trace."""
    from harness import tools

    raise typer.Exit(
        tools.profile(
            method,
            size=size,
            resolution=resolution,
            batch=batch,
            device=device,
            out=out,
            sets=set_ or (),
            as_json=as_json,
        )
    )


@data_app.command("render")
def data_render(
    names: Annotated[list[str], typer.Argument(help="Embedded sets: glyphs, glyphs-motion.")],
    size: Annotated[str, typer.Option("--size")] = "tiny",
    data_root: DataRoot = DATA_ROOT,
    processes: Annotated[int, typer.Option("--processes")] = max(1, os.cpu_count() or 1),
) -> None:
    """Render embedded sets as H.264 .mp4 files, deterministic by seed."""
    from harness import tools

    raise typer.Exit(tools.data_render(names, size=size, data_root=data_root, processes=processes))


@data_app.command("prepare")
def data_prepare(names: list[str], data_root: DataRoot = DATA_ROOT) -> None:
    """Say which files a real data set needs, where they go, and what is there already."""
    from harness import tools

    raise typer.Exit(tools.data_prepare(names, data_root=data_root))


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="Data set, or csv:PATH.")],
    full: Annotated[bool, typer.Option("--full", help="Decode every frame and compare counts.")] = False,
    size: Annotated[str, typer.Option("--size")] = "tiny",
    data_root: DataRoot = DATA_ROOT,
    train: Train = None,
    test: Test = None,
    allow_absolute: AllowAbsolute = False,
    as_json: Json = False,
) -> None:
    """Name every missing, empty, truncated or broken video of a data set."""
    from harness import tools

    raise typer.Exit(
        tools.data_check(
            name,
            full=full,
            size=size,
            data_root=data_root,
            train=train,
            test=test,
            allow_absolute=allow_absolute,
            as_json=as_json,
        )
    )


@data_app.command("stats")
def data_stats(
    name: Annotated[str, typer.Argument(help="Data set, or csv:PATH.")],
    size: Annotated[str, typer.Option("--size")] = "tiny",
    data_root: DataRoot = DATA_ROOT,
    train: Train = None,
    test: Test = None,
    allow_absolute: AllowAbsolute = False,
    as_json: Json = False,
) -> None:
    """Videos, classes, lengths, sizes and decoder paths of a data set."""
    from harness import tools

    raise typer.Exit(
        tools.data_stats(
            name, size=size, data_root=data_root, train=train, test=test, allow_absolute=allow_absolute, as_json=as_json
        )
    )


def _report(work_dirs: list[Path], out: Path, stream: TextIO) -> None:
    """The report at the end of a run; a folder that cannot be reported as one does not undo the run."""
    from harness.errors import BenchError
    from reports import build

    try:
        written = build(work_dirs, out)
    except BenchError as error:
        print(f"no report: {error}", file=sys.stderr)
        return
    for path in written:
        if path.name in ("index.html", "comparison.md"):
            print(f"report: {path}", file=stream)


def _command() -> str:
    return shlex.join(["bench.py", *sys.argv[1:]])


def main() -> Any:
    """Run the command line; errors a user can mend are shown without a traceback."""
    from harness.errors import BenchError

    try:
        app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
