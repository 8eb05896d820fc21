"""What every process of a run does first: end with its parent, keep to its threads; and how a failed one is told."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time


def die_with_parent(parent: int) -> None:
    """End this process when `parent` is gone: at once on Linux, within a second elsewhere."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def use_threads(number: int) -> None:
    """Threads of torch and of OpenCV, which otherwise resizes frames on every core."""
    import cv2
    import torch

    torch.set_num_threads(number)
    cv2.setNumThreads(number)


def how_ended(code: int) -> str:
    """What a process that went wrong did, by its return code as `subprocess` gives it."""
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"


def told_by_worker(error: Exception) -> str:
    """An error's text; of one that a loader's worker raised without the traceback that torch puts into it."""
    text = str(error)
    found = re.match(r"Caught (\w+) in ", text)  # another type where the error's own takes more than a text
    return text.rpartition(f"{found[1]}: ")[2].strip() if found else text


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
