"""fvcore's counter, imported without torch's warning that fvcore uses `torch.jit.script`."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = ["FlopCountAnalysis"]
