"""The one module that knows the breakages of the stack; import it before mmaction."""

from __future__ import annotations

import sys
import types


def _stub_drn() -> None:
    """mmaction2's wheel lacks `mmaction.models.localizers.drn` (mmaction2 #2714)."""
    parent = types.ModuleType("mmaction.models.localizers.drn")
    child = types.ModuleType("mmaction.models.localizers.drn.drn")
    child.DRN = type("DRN", (), {})  # type: ignore[attr-defined]
    sys.modules.setdefault(parent.__name__, parent)
    sys.modules.setdefault(child.__name__, child)


_stub_drn()
