"""Replaying the authors' recorded pairs (harness.parity) with this project's networks, one module per family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.parity import ParityCase
from harness.recognizer import EfficientRecognizer

Recognizer = TypeVar("Recognizer", bound=EfficientRecognizer)


def load(cls: type[Recognizer], case: ParityCase, **given: Any) -> Recognizer:
    """`cls` with the pair's weights, read through `from_official`, in eval mode."""
    converted = cls.from_official(tensors(case), patch_size=case.spec["patch_size"], **given)
    model = cls(**converted.settings, data_preprocessor={"type": "BaseDataPreprocessor"})
    model.load_state_dict(converted.state)
    return model.eval()


def tensors(case: ParityCase) -> dict[str, Any]:
    """The authors' file of a pair as it would be read from disk."""
    checkpoint = case.checkpoint()
    if all(isinstance(value, Mapping) for value in checkpoint.values()):
        return {part: {n: torch.from_numpy(v) for n, v in group.items()} for part, group in checkpoint.items()}
    return {f"module.{name}": torch.from_numpy(value) for name, value in checkpoint.items()}


def catch(seen: dict[str, Any], name: str, part: nn.Module) -> RemovableHandle:
    """Keep what `part` returns as `seen[name]` until the handle is removed."""
    return part.register_forward_hook(lambda _module, _inputs, output: seen.update({name: output}))


def to_numpy(outputs: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Tensors as arrays."""
    return {name: value.detach().numpy() for name, value in outputs.items() if value is not None}
