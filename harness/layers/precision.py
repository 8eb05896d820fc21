"""Parts of a method that must keep their precision inside an autocast region."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(like: Tensor) -> AbstractContextManager[object]:
    """A region without autocast on the device of `like`; the tensors' own types then decide."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def at_least_float32(x: Tensor) -> Tensor:
    """`x`, in float32 where its type holds less."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
