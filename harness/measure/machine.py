"""Which machine this is: what a latency figure belongs to, and what could have disturbed it. No torch.

Two latencies are comparable only where `fingerprint()` is equal: same CPU model and number of cores,
same GPUs, same driver, same torch. `conditions()` is what may differ from minute to minute on one
machine (clocks, temperature, load); it is recorded beside the samples, not part of the fingerprint.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness.contract.values import digest
from harness.errors import BenchError

GPU_CONDITIONS = (
    "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active",
)
LOCK_NAME = "focusbench-latency.lock"
POLL_S = 0.2


@dataclass(frozen=True)
class Machine:
    """Everything a latency depends on that does not change while the machine runs."""

    cpu: str
    """Model name with family, model and stepping: virtual machines often hide the name."""
    cores: int
    """Logical cores of the machine, not of this process."""
    gpus: tuple[str, ...]
    driver: str | None
    """NVIDIA driver version, None without a GPU."""
    torch: str
    """Version of the installed torch; the wheel fixes CUDA and cuDNN."""


@cache
def machine() -> Machine:
    """This machine."""
    rows = nvidia_smi("name", "driver_version")
    return Machine(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        gpus=tuple(row["name"] for row in rows),
        driver=rows[0]["driver_version"] if rows else None,
        torch=installed("torch") or "none",
    )


def fingerprint() -> str:
    """12 hex digits that name this machine; equal for every process on it."""
    return digest(asdict(machine()), length=12)


def cpu_name() -> str:
    """Model name of the CPU with its family, model and stepping where Linux tells them."""
    facts = _cpu_facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    numbers = [facts[key] for key in ("cpu family", "model", "stepping") if key in facts]
    return f"{name} ({'/'.join(numbers)})" if numbers else name


def _cpu_facts() -> dict[str, str]:
    """Linux's description of the first core; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def installed(package: str) -> str | None:
    """Version of an installed package, read from its metadata without importing it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def nvidia_smi(*fields: str, gpu: str | None = None) -> list[dict[str, str]]:
    """One dict of `fields` per GPU (or of the one GPU `gpu`: index or UUID); empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        command += ["-i", gpu] if gpu else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def governor() -> str | None:
    """Frequency governor of the first core, None where the system does not tell (virtual machines)."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def conditions(gpu: str | None = None) -> dict[str, Any]:
    """What may disturb a timing now: clocks, load, other processes; with `gpu` (UUID) that GPU's too.

    `load` is the 1-minute load average per core: near 0 when the machine is otherwise idle.
    """
    megahertz = _cpu_facts().get("cpu MHz")
    state: dict[str, Any] = {
        "cpu_mhz": round(float(megahertz)) if megahertz else None,
        "governor": governor(),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }
    if gpu is not None:
        rows = nvidia_smi(*GPU_CONDITIONS, gpu=gpu)
        state["gpu"] = rows[0] if rows else None
    return state


@contextmanager
def machine_lock(
    work_dir: Path | str | None = None,
    *,
    timeout_s: float | None = None,
    on_wait: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Iterator[None]:
    """Hold the machine's latency lock: one timing at a time, whichever work directory it belongs to.

    The lock is an advisory `flock` on one file in the system's temporary folder; it ends with the
    process, however that ends.

    Args:
        work_dir: Told to whoever waits for us.
        timeout_s: Give up after this long (None: wait for ever).
        on_wait: Called once with a sentence that names the holder, when there is one.
        folder: Where the lock file lies instead (tests).

    Raises:
        BenchError: the lock was not free within `timeout_s`.
    """
    path = (folder or Path(tempfile.gettempdir())) / LOCK_NAME
    descriptor = _open_lock(path)
    try:
        _acquire(descriptor, path, timeout_s, on_wait)
        _sign(descriptor, f"process {os.getpid()}" + (f" on {work_dir}" if work_dir else ""))
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the lock file, made once by whoever comes first; another user's can only be read, which does."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise BenchError(f"cannot open {path}: {error.strerror}; set TMPDIR to a folder you own") from error


def _acquire(descriptor: int, path: Path, timeout_s: float | None, on_wait: Callable[[str], None] | None) -> None:
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise BenchError(f"cannot lock {path}: {error.strerror}; set TMPDIR to a local folder") from error
        holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another process"
        if timeout_s is not None and time.monotonic() - began >= timeout_s:
            raise BenchError(f"this machine is timing something else ({holder}); try again when that is done")
        if on_wait is not None and not told:
            on_wait(f"waiting until {holder} has finished timing on this machine")
            told = True
        time.sleep(POLL_S)


def _sign(descriptor: int, text: str) -> None:
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
