"""`bench.py doctor`: what is wrong with this installation or machine, and what to do about it.

Every check returns findings and none stops the next: this runs where things are broken. Heavy packages
are imported inside the checks that try them.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import io
import json
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from harness.errors import FAILED, OK, BenchError
from harness.measure.machine import conditions, fingerprint, governor, machine
from harness.measure.provenance import ROOT
from harness.store.sources import installed

Level = Literal["ok", "warn", "fail"]
GIB = 1 << 30
PYTHON = (3, 11)
DISK_FAIL, DISK_WARN = GIB // 2, 5 * GIB
SHM_WARN = GIB
CLIP_FRAMES = 8
AV_REMEDY = "reinstall av from its wheel: pip install --force-reinstall --only-binary av av"
CODECS: tuple[tuple[str, str, Level, str], ...] = (
    ("h264", "r", "fail", "most videos cannot be read"),
    ("libx264", "w", "fail", "the embedded sets cannot be rendered"),
    ("hevc", "r", "warn", "H.265 videos cannot be read"),
    ("vp9", "r", "warn", "VP9 videos cannot be read"),
    ("av1", "r", "warn", "AV1 videos cannot be read"),
)
BUSY = 0.5
"""Load per core above which timings are disturbed."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """`fail`: the project does not work so; `warn`: a part of it does not, or figures suffer."""
    what: str
    remedy: str = ""
    """What to do; empty when all is well."""


def diagnose(
    work_dir: Path | str | None = None, data_root: Path | str | None = None, weights_dir: Path | str | None = None
) -> list[Finding]:
    """Look at versions, packages, devices, codecs, disk and timing conditions.

    Args:
        work_dir, data_root: Where results and videos go; they need not exist.
        weights_dir: Folder of ImageNet weights, if there is one.
    """
    checks = [
        check_python, check_pins, check_opencv, check_imports, check_cuda, check_codecs, check_methods,
        check_shared_memory, check_tools, check_timing,
    ]  # fmt: skip
    checks += [partial(check_folder, Path(path), name) for name, path in _folders(work_dir, data_root)]
    if weights_dir is not None:
        checks.append(partial(check_weights, Path(weights_dir)))
    return [finding for check in checks for finding in check()]


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    here = f"Python {platform.python_version()} on {platform.platform()}"
    if sys.version_info[:2] < PYTHON:
        yield Finding("fail", here, "use Python {}.{} or newer".format(*PYTHON))
    else:
        yield Finding("ok", here)


def check_pins() -> Iterator[Finding]:
    """Installed versions against what the project declares."""
    wrong = [finding for text in requirements() for finding in check_requirement(text)]
    yield from wrong
    if not wrong:
        yield Finding("ok", f"{len(requirements())} declared packages have the versions asked for")


def requirements() -> list[str]:
    """The declared dependencies: of the installed project, else of the checkout."""
    try:
        return [r for r in requires("focusbench") or [] if "extra ==" not in r]
    except PackageNotFoundError:
        path = ROOT / "pyproject.toml"
        return list(tomllib.loads(path.read_text())["project"]["dependencies"]) if path.exists() else []


def check_requirement(text: str) -> Iterator[Finding]:
    """One dependency; nothing where it is met."""
    wanted = Requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return
    found = installed(wanted.name)
    if found is None:
        yield Finding("fail", f"{wanted.name} is not installed", f"pip install '{text}'")
    elif not wanted.specifier.contains(found, prereleases=True):
        yield Finding("fail", f"{wanted.name} is {found}, needed is {wanted.specifier}", f"pip install '{text}'")


def check_opencv() -> Iterator[Finding]:
    """Several OpenCV wheels share one folder: harmless (mmengine and mmaction2 bring two) unless they differ."""
    names = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
    found = {name: version for name in names if (version := installed(name))}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{name} {version}" for name, version in found.items())
        remedy = f"pip uninstall {' '.join(found)}; pip install opencv-contrib-python"
        yield Finding("warn", f"OpenCV wheels of different versions overwrite each other: {listed}", remedy)


def check_imports() -> Iterator[Finding]:
    """The packages that break most often, imported in the order the project imports them."""
    remedies = {
        "torch": "reinstall torch for this system: pip install --force-reinstall torch torchvision",
        "torchvision": "install torch and torchvision together, plainly: a CPU-only torch has no matching torchvision",
        "mmcv": "pip install 'mmcv-lite>=2.1,<2.2' (the full mmcv needs compiling and is not used)",
        "harness.compat": "the workarounds no longer fit what is installed; reinstall the declared versions",
        "mmaction.models": "mmaction2's wheel is incomplete (issue 2714) and harness.compat could not mend it; "
        "pip install mmaction2==1.2.0",
        "cv2": "pip install opencv-contrib-python; on a bare container also the system library libgl1",
        "av": "pip install av",
    }
    for name, remedy in remedies.items():
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError, AssertionError, AttributeError) as error:
            yield Finding("fail", f"importing {name} fails: {type(error).__name__}: {error}", remedy)
            return
    yield Finding("ok", f"imports work: {', '.join(remedies)}")


def check_cuda() -> Iterator[Finding]:
    """GPUs that are there, and whether this torch can use them."""
    here = machine()
    yield Finding("ok", f"CPU {here.cpu}, {here.cores} cores; machine fingerprint {fingerprint()}")
    try:
        import torch
    except (ImportError, OSError):
        return
    if not torch.cuda.is_available():
        if not here.gpus:
            yield Finding("ok", "no NVIDIA GPU: everything runs on the CPU")
        else:
            built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "is CPU-only"
            yield Finding(
                "warn",
                f"{', '.join(here.gpus)} (driver {here.driver}) cannot be used: torch {torch.__version__} {built}",
                "update the driver, or install a torch built for an older CUDA (pytorch.org/get-started); "
                "check CUDA_VISIBLE_DEVICES",
            )
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def check_codecs() -> Iterator[Finding]:
    """Encoders and decoders of PyAV's FFmpeg, and a clip written and read back."""
    try:
        import av
    except ImportError:
        return
    for name, mode, level, used in CODECS:
        if not _has_codec(name, mode):
            yield Finding(level, f"FFmpeg has no {'encoder' if mode == 'w' else 'decoder'} {name}: {used}", AV_REMEDY)
    try:
        frames = _round_trip()
    except (av.FFmpegError, ValueError, RuntimeError) as error:
        yield Finding("fail", f"writing and reading an H.264 clip fails: {error}", AV_REMEDY)
        return
    if frames != CLIP_FRAMES:
        yield Finding("fail", f"an H.264 clip of {CLIP_FRAMES} frames came back with {frames}", AV_REMEDY)
    else:
        yield Finding("ok", f"H.264 is written and read (PyAV {av.__version__})")


def check_methods() -> Iterator[Finding]:
    """Every method file has a readable card, and what knows the authors' files can be imported."""
    from harness.contract.registry import authors_module, method_cards

    try:
        cards = method_cards()
    except BenchError as error:
        yield Finding("fail", f"a method's card cannot be read: {error}", "mend or remove that file")
        return
    for card in cards.values():
        try:
            authors_module(card)
        except BenchError as error:
            yield Finding("fail", str(error), "mend the card's entry `authors`, or install what the module needs")
    if cards:
        yield Finding("ok", f"{len(cards)} methods found")
    else:
        yield Finding("fail", "no methods found", "reinstall the project: its packages hold none")


def check_shared_memory() -> Iterator[Finding]:
    """Loader processes hand clips over through /dev/shm."""
    if not Path("/dev/shm").is_dir():
        return
    size = shutil.disk_usage("/dev/shm").total
    if size < SHM_WARN:
        remedy = "start the container with --shm-size=8g (or --ipc=host), or train without loader processes"
        yield Finding("warn", f"/dev/shm holds only {size / GIB:.2f} GiB", remedy)
    else:
        yield Finding("ok", f"/dev/shm holds {size / GIB:.1f} GiB")


def check_tools() -> Iterator[Finding]:
    """Programs that parts of the project call."""
    if shutil.which("git") is None:
        yield Finding("warn", "git is not installed", "install it: records name the revision, gates compare with one")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield Finding("warn", "no C++ compiler", "install g++ to use --engine compiled on the CPU")


def check_timing() -> Iterator[Finding]:
    """What would disturb latency figures now."""
    state, found = conditions(), []
    if governor() not in (None, "performance"):
        what = f"CPU frequency governor is {governor()}: clocks rise and fall while timing"
        found.append(Finding("warn", what, "sudo cpupower frequency-set -g performance"))
    if state["load"] > BUSY:
        what = f"the machine is busy (load {state['load']:.2f} per core): latencies will be too long"
        found.append(Finding("warn", what, "stop other programs before timing"))
    yield from found or [Finding("ok", f"quiet enough to time (load {state['load']:.2f} per core)")]


def check_folder(folder: Path, name: str) -> Iterator[Finding]:
    """A folder results or videos go to: writable, room on the disk, locks that work."""
    there = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".focusbench-doctor-") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
            what = f"{name} {folder}: this file system has no locks, so two runs would not notice each other"
            yield Finding("warn", what, f"choose a local folder with {name}")
        else:
            yield Finding("fail", f"{name} {folder} cannot be written: {error.strerror}", f"choose another {name}")
            return
    free = shutil.disk_usage(there).free
    level: Level = "fail" if free < DISK_FAIL else "warn" if free < DISK_WARN else "ok"
    remedy = "" if level == "ok" else f"free space, or choose another {name}"
    yield Finding(level, f"{name} {folder}: {free / GIB:.1f} GiB free", remedy)


def check_weights(folder: Path) -> Iterator[Finding]:
    """Which ImageNet weights are there (the real-size networks start from them)."""
    if not folder.is_dir():
        yield Finding("warn", f"--weights-dir {folder} does not exist", "make it and put ImageNet weights there")
        return
    try:
        from harness.layers.backbones import IMAGENET_FILES
    except (ImportError, OSError):
        return
    for backbone, files in IMAGENET_FILES.items():
        found = next((name for name in files if (folder / name).is_file()), None)
        if found:
            yield Finding("ok", f"weights of {backbone}: {found}")
        else:
            yield Finding("warn", f"no weights of {backbone} in {folder}", f"put {' or '.join(files)} there")


def _folders(work_dir: Path | str | None, data_root: Path | str | None) -> Iterable[tuple[str, Path | str]]:
    return [(n, p) for n, p in (("--work-dir", work_dir), ("--data-root", data_root)) if p is not None]


def _nearest(folder: Path) -> Path:
    """The folder itself or the nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gpu(index: int) -> Finding:
    import torch

    facts = torch.cuda.get_device_properties(index)
    capability = f"compute capability {facts.major}.{facts.minor}"
    name = f"GPU {index}: {facts.name}, {facts.total_memory / GIB:.0f} GiB, {capability}"
    built = [int(m[1]) for a in torch.cuda.get_arch_list() if (m := re.fullmatch(r"(?:sm|compute)_(\d+)[af]?", a))]
    if built and facts.major * 10 + facts.minor < min(built):
        remedy = "install an older torch that was built for this GPU, or use --device cpu"
        return Finding("fail", f"{name} is too old for torch {torch.__version__}", remedy)
    return Finding("ok", f"{name}, torch built for CUDA {torch.version.cuda}")


def _has_codec(name: str, mode: str) -> bool:
    codec = importlib.import_module("av.codec.codec")
    try:
        codec.Codec(name, mode)
    except (codec.UnknownCodecError, ValueError):
        return False
    return True


def _round_trip() -> int:
    """Frames that come back from a small H.264 clip in memory."""
    import av as pyav
    import numpy as np

    buffer = io.BytesIO()
    with pyav.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for shade in range(CLIP_FRAMES):
            frame = pyav.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * shade, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with pyav.open(buffer, "r") as clip:
        return len(list(clip.decode(video=0)))


def doctor(work_dir: Path, data_root: Path, weights_dir: Path | None, *, as_json: bool) -> int:
    """Findings with remedies; 1 where something does not work."""
    findings = diagnose(work_dir, data_root, weights_dir)
    if as_json:
        print(json.dumps([asdict(f) for f in findings], indent=1))
    for finding in () if as_json else findings:
        print(f"{finding.level:5} {finding.what}" + (f"\n      -> {finding.remedy}" if finding.remedy else ""))
    return FAILED if any(f.level == "fail" for f in findings) else OK
