"""Where a network's convolution weights lie in memory."""

from __future__ import annotations

import torch
from torch import nn

MEMORY_FORMATS = ("channels_last", "contiguous")


def set_memory_format(model: nn.Module, memory_format: str) -> None:
    """Lay out convolution weights in place, `channels_last` or `contiguous`; 3-D ones get the 3-D variant."""
    formats = {
        "channels_last": {4: torch.channels_last, 5: torch.channels_last_3d},
        "contiguous": {4: torch.contiguous_format, 5: torch.contiguous_format},
    }[memory_format]
    for parameter in model.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])
