"""Where a result comes from: packages, git, machine, command. No torch.

Which project sources it rests on, and whether they have changed since, is `harness.store.sources`' matter.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.measure.machine import fingerprint, machine
from harness.store.sources import installed

PACKAGES = (
    "focusbench", "torch", "torchvision", "mmengine", "mmaction2", "mmcv-lite", "numpy", "scipy", "av",
    "opencv-contrib-python", "torchcodec", "fvcore",
)
ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "WORLD_SIZE",
               "MALLOC_MMAP_MAX_")
ROOT = Path(__file__).resolve().parents[2]


def now() -> str:
    """UTC, ISO 8601, to the second: when a record was created."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def provenance(command: Sequence[str]) -> dict[str, Any]:
    """Everything about the surroundings of a result, as plain JSON.

    Args:
        command: The command line that made it (`sys.argv`).
    """
    here = machine()
    return {
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "python": platform.python_version(),
        "git": git_state(),
        "cpu": here.cpu,
        "cores": here.cores,
        "gpu": list(here.gpus),
        "driver": here.driver,
        "machine": fingerprint(),
        "platform": platform.platform(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "command": list(command),
    }


def git_state(root: Path = ROOT) -> dict[str, Any] | None:
    """`{revision, dirty}` of the project's own repository; None for an installed copy or without git."""
    if _git(root, "ls-files", "--error-unmatch", "harness/measure/provenance.py") is None:
        return None  # no repository, or someone else's around an installed copy
    revision = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return None if revision is None or status is None else {"revision": revision.strip(), "dirty": bool(status.strip())}


def _git(root: Path, *arguments: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
