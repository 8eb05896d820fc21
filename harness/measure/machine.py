"""Which machine this is: what a latency figure belongs to, and what could have disturbed it. No torch.

Two latencies are comparable only where `fingerprint()` is equal: same CPU model and number of cores,
same GPUs, same driver, same torch. `conditions()` is what may differ from minute to minute on one
machine (clocks, temperature, load); it is recorded beside the samples, not part of the fingerprint.

A timing waits for a quiet machine (`wait_until_quiet`), and says how much of the processor others took while it
timed (`OthersMeter`). Two lock files keep this project's own processes apart: one timing at a time
(`machine_lock`), and no timing beside a training or evaluation if that ends soon (`at_work`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.contract.values import digest
from harness.errors import BenchError
from harness.store.sources import installed

GPU_CONDITIONS = (
    "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active",
)
GPU_SLOWDOWNS = {
    0x04: "GPU at its power cap",
    0x08: "GPU slowed by hardware",
    0x20: "GPU slowed by heat",
    0x40: "GPU slowed by heat (hardware)",
    0x80: "GPU slowed by the power brake",
}
"""Bits of NVML's clock event reasons that hold the clocks below what was asked for; idle and set clocks do not."""
QUIET = 0.1
"""Largest share of the processor (of the GPU) that others may take from an undisturbed timing; see `busy_reasons`."""
QUIET_CORES = 0.2
"""So much of one core others may take from a timing of one or two threads, where there are cores enough."""
PATIENCE_S = 60.0
"""How long a timing waits for a quiet machine."""
WINDOW_S = 0.3
"""How long the processor is watched before it is called quiet."""
GPU_WINDOW_S = 1.0
"""The longest time that a GPU's utilization is averaged over."""
LOCK_NAME, WORK_LOCK_NAME = "focusbench-latency.lock", "focusbench-work.lock"
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


def _cpu_throttled() -> int | None:
    """How often the cores were throttled since the machine started; None where Linux does not tell."""
    try:
        found = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")
        counts = [int(path.read_text()) for path in found]
        return sum(counts) if counts else None
    except (OSError, ValueError):
        return None


def conditions(gpu: str | None = None) -> dict[str, Any]:
    """What may disturb a timing now: clocks, load, other processes; with `gpu` (UUID) that GPU's too.

    `load` is the 1-minute load average per core, our own work included; `cpu_throttled` how often the processor
    has throttled itself so far.
    """
    megahertz = _cpu_facts().get("cpu MHz")
    state: dict[str, Any] = {
        "cpu_mhz": round(float(megahertz)) if megahertz else None,
        "governor": governor(),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2),
        "affinity": len(own_cores()),
        "cpu_throttled": _cpu_throttled(),
    }
    if gpu is not None:
        rows = nvidia_smi(*GPU_CONDITIONS, gpu=gpu)
        state["gpu"] = rows[0] if rows else None
    return state


class OthersMeter:
    """How much of the processor other processes take, from the start of the meter on.

    The cores that this process may use count. What this process uses itself is taken off; time that a hypervisor
    stole counts as others'.
    """

    def __init__(self) -> None:
        self._began, self._own, self._busy = time.monotonic(), time.process_time(), _busy_seconds()

    def share(self) -> float | None:
        """Share of the cores' time, 0 to 1; None where the system does not tell."""
        cores, busy = len(own_cores()), _busy_seconds()
        seconds = (time.monotonic() - self._began) * cores
        if busy is None or self._busy is None or seconds <= 0:
            return None
        others = busy - self._busy - (time.process_time() - self._own)
        return round(min(1.0, max(0.0, others / seconds)), 3)


def own_cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _busy_seconds() -> float | None:
    """Seconds that the cores of this process have worked since the machine started; None where Linux does not tell."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    rows = {row[0]: list(map(int, row[1:])) for row in map(str.split, lines) if re.fullmatch(r"cpu\d+", row[0])}
    found = [rows[f"cpu{core}"] for core in own_cores() if f"cpu{core}" in rows]
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(row[:8]) - row[3] - row[4] for row in found) / os.sysconf("SC_CLK_TCK") if found else None


@dataclass(frozen=True)
class Quiet:
    """How waiting for a quiet machine ended."""

    waited_s: float
    gpu_others: float | None
    """Share of its time that the GPU still worked for others; None where none was asked about or it does not tell."""


def wait_until_quiet(
    limit_s: float, *, threads: int = 1, gpu: str | None = None, on_wait: Callable[[str], None] | None = None
) -> Quiet:
    """Wait until others leave the processor (and `gpu`, which must be idle here) alone, about `limit_s` at most.

    `threads` are to be timed. A look that finds the machine quiet is no waiting.
    """
    waited = 0.0
    while True:
        began, meter = time.monotonic(), OthersMeter()
        time.sleep(WINDOW_S)
        share, working = meter.share(), _gpu_work(gpu) if gpu is not None else None
        reasons = busy_reasons(share, working, cores=len(own_cores()), threads=threads)
        if not reasons:
            return Quiet(waited, working)
        waited += time.monotonic() - began
        if waited >= limit_s:
            return Quiet(waited, working)
        if on_wait is not None:
            on_wait(f"waiting for a quiet machine: {', '.join(reasons)}")


def busy_reasons(
    others: float | None, gpu_others: float | None = None, *, cores: int = 1, threads: int = 1
) -> list[str]:
    """Why a machine on which others take these shares of the processor and of the GPU is not quiet; empty if it is.

    Of the processor others may take `QUIET` of the `cores`, and at most so much of as many cores as `threads` are
    timed (or `QUIET_CORES`): on a machine of many cores a rival with a whole one is a small share, yet it takes
    memory bandwidth, caches and clock speed.
    """
    reasons = []
    if others is not None and (others > QUIET or others * cores > max(QUIET * threads, QUIET_CORES)):
        reasons.append(f"load {others:.2f} per core by other processes")
    if gpu_others is not None and gpu_others > QUIET:
        reasons.append(f"GPU busy with other work {gpu_others:.0%} of the time")
    return reasons


def visible_gpu() -> str:
    """Index or identity of the first GPU that this process may use."""
    return (os.environ.get("CUDA_VISIBLE_DEVICES") or "0").partition(",")[0]


def _gpu_work(gpu: str) -> float | None:
    """Share of its time that a GPU works; looked at again before it is called busy, for work of ours may just be over.

    None where it does not tell.
    """
    working = _gpu_utilization(gpu)
    if working is None or working <= QUIET:
        return working
    time.sleep(GPU_WINDOW_S)
    return _gpu_utilization(gpu)


def _gpu_utilization(gpu: str) -> float | None:
    rows = nvidia_smi("utilization.gpu", gpu=gpu)
    return float(rows[0]["utilization.gpu"]) / 100 if rows and rows[0]["utilization.gpu"].isdigit() else None


def slowed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What held the clocks down between two `conditions()`, in words; `after` was taken while the device worked."""
    reasons = [name for bit, name in GPU_SLOWDOWNS.items() if _gpu_flags(after) & bit]
    if (after.get("cpu_throttled") or 0) > (before.get("cpu_throttled") or 0):
        reasons.append("processor throttled by heat")
    return reasons


def _gpu_flags(state: Mapping[str, Any]) -> int:
    text = (state.get("gpu") or {}).get("clocks_throttle_reasons.active", "")
    try:
        return int(text, 16)
    except ValueError:
        return 0


@contextmanager
def machine_lock(
    work_dir: Path | str | None = None,
    *,
    timeout_s: float | None = None,
    patience_s: float = PATIENCE_S,
    on_wait: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> Iterator[str | None]:
    """Hold the machine's latency lock: one timing at a time, whichever work directory it belongs to.

    The locks are advisory `flock`s on files in the system's temporary folder; they end with the process, however
    that ends. Yields who else is at work on this machine (`at_work`), None where nobody is; then nobody starts
    before this timing is over.

    Args:
        work_dir: Told to whoever waits for us.
        timeout_s: Give up after waiting this long for another timing (None: wait for ever).
        patience_s: How long trainings and evaluations are waited for.
        on_wait: Called once with a sentence that names the holder, when there is one.
        folder: Where the lock files lie instead (tests).

    Raises:
        BenchError: the lock was not free within `timeout_s`.
    """
    with _lock_file(LOCK_NAME, folder) as timing, _lock_file(WORK_LOCK_NAME, folder) as working:
        holder = _wait_for(timing, fcntl.LOCK_EX, timeout_s, "timing", on_wait)
        if holder is not None:
            raise BenchError(f"this machine is timing something else ({holder}); try again when that is done")
        timing.sign(work_dir)
        others = _wait_for(working, fcntl.LOCK_EX, patience_s, "its work", on_wait)
        if others is None:
            working.sign(work_dir)
        yield others


@contextmanager
def at_work(
    work_dir: Path | str | None = None,
    *,
    on_wait: Callable[[str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
    folder: Path | None = None,
) -> Iterator[None]:
    """Let timings know that this process trains or evaluates; several may at once.

    Waits while a timing runs that nobody disturbs yet. Goes on without the lock where `stop()` says so, and where
    the temporary folder has no locks: then timings see this process by the processor's load only.
    """
    with ExitStack() as stack:
        with suppress(BenchError):
            working = stack.enter_context(_lock_file(WORK_LOCK_NAME, folder))
            if _wait_for(working, fcntl.LOCK_SH, None, "timing", on_wait, stop) is None:
                working.sign(work_dir)
        yield


@dataclass(frozen=True)
class _LockFile:
    descriptor: int
    path: Path

    def taken(self, how: int) -> bool:
        """Whether the lock is ours now."""
        try:
            fcntl.flock(self.descriptor, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                raise BenchError(f"cannot lock {self.path}: {error.strerror}; set TMPDIR to a local folder") from error
            return False
        return True

    def holder(self) -> str:
        """Who signed it last."""
        return os.pread(self.descriptor, 500, 0).decode(errors="replace").strip() or "another process"

    def sign(self, work_dir: Path | str | None) -> None:
        """Write down who holds it, for those who wait."""
        if fcntl.fcntl(self.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
            os.ftruncate(self.descriptor, 0)
            text = f"process {os.getpid()}" + (f" on {work_dir}" if work_dir else "")
            os.pwrite(self.descriptor, text.encode(), 0)


@contextmanager
def _lock_file(name: str, folder: Path | None) -> Iterator[_LockFile]:
    """A lock file, made once by whoever comes first; another user's can only be read, which does."""
    path = (folder or Path(tempfile.gettempdir())) / name
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise BenchError(f"cannot open {path}: {error.strerror}; set TMPDIR to a folder you own") from error
    try:
        yield _LockFile(descriptor, path)
    finally:
        os.close(descriptor)


def _wait_for(
    lock: _LockFile,
    how: int,
    limit_s: float | None,
    until: str,
    on_wait: Callable[[str], None] | None,
    stop: Callable[[], bool] = lambda: False,
) -> str | None:
    """Take the lock within `limit_s` (None: ever), or say who kept it."""
    began, told = time.monotonic(), False
    while not lock.taken(how):
        if stop() or (limit_s is not None and time.monotonic() - began >= limit_s):
            return lock.holder()
        if on_wait is not None and not told:
            on_wait(f"waiting until {lock.holder()} has finished {until} on this machine")
            told = True
        time.sleep(POLL_S)
    return None
