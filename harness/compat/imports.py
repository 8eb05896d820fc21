"""Makes `import mmaction` possible; import this first."""

from __future__ import annotations

import sys
import types
import warnings

warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")


def _stub_drn() -> None:
    """Stand in for the subpackage that mmaction2's wheel forgot; no recognizer uses it."""
    parent = types.ModuleType("mmaction.models.localizers.drn")
    child = types.ModuleType("mmaction.models.localizers.drn.drn")
    child.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault(parent.__name__, parent)
    sys.modules.setdefault(child.__name__, child)


_stub_drn()
