"""What replaying recorded pairs (harness.authors.parity) with the AdaFocus family needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.authors.official import Converted
from harness.authors.parity import ParityCase, video
from harness.contract.recognizer import EfficientRecognizer
from harness.contract.trace import Trace
from harness.errors import CheckpointError, UsageError

Recognizer = TypeVar("Recognizer", bound=EfficientRecognizer)
Reader = Callable[..., Converted | None]


def is_method(case: ParityCase, method: str) -> bool:
    """Whether the pair is one of the method, as the authors call it."""
    return case.spec.get("method") == method


def load(cls: type[Recognizer], from_official: Reader, case: ParityCase, **given: Any) -> Recognizer:
    """`cls` with the pair's weights, read through `from_official`, in eval mode.

    Raises:
        CheckpointError: It is not of that method.
    """
    converted = from_official(tensors(case), patch_size=case.spec["patch_size"], **given)
    if converted is None:
        raise CheckpointError(f"{case.name}: {cls.__name__} does not know the pair's checkpoint")
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


def places(trace: Trace, steps: int) -> Tensor:
    """Where `infer` looked (B, steps, 2), out of the boxes that it noted: 0 to 1 from border to border."""
    found = torch.full((trace.videos, steps, 2), torch.nan)
    for row, step, _, top, left, height, width in trace.boxes:
        found[row, step] = torch.tensor([top / (1 - height), left / (1 - width)])
    return found


def to_numpy(outputs: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """Tensors as arrays."""
    return {name: value.detach().numpy() for name, value in outputs.items() if value is not None}


def two_clips(case: ParityCase) -> tuple[Tensor, Tensor]:
    """The clips (B, T, 3, H, W) of a pair with two: `input` tells their shapes, the second's seed is the next."""
    shapes = [
        tuple(map(int, found)) for found in re.findall(r"\((\d+),(\d+)\*3,(\d+),(\d+)\)", case.spec["input"])
    ]
    if len(shapes) != 2:
        raise UsageError(f"{case.name}: input {case.spec['input']!r} does not tell of two clips")
    first, second = (
        torch.from_numpy(video(case.spec["input_seed"] + offset, (batch, frames * 3, height, width)))
        for offset, (batch, frames, height, width) in enumerate(shapes)
    )
    return first.unflatten(1, (-1, 3)), second.unflatten(1, (-1, 3))


FRAME_LOSSES = {
    "loss_cat_learned": ("loss_learned", 2),
    "loss_cat_random": ("loss_random", 2),
    "loss_global_aux": ("loss_glance", 1),
    "loss_local_learned": ("loss_focus_learned", 2),
    "loss_local_random": ("loss_focus_random", 2),
}
"""Pairs' names of the losses of V2 and Uni-AdaFocus: ours, and how often it counts (ours are halved)."""

CLIP_LOSSES = {
    "loss_final_learned": ("loss_learned", 2),
    "loss_final_random": ("loss_random", 2),
    "loss_global": ("loss_glance", 1),
    "loss_local_learned": ("loss_focus_learned", 2),
    "loss_local_random": ("loss_focus_random", 2),
}
"""The same on TSM and X3D."""


def renamed(losses: Mapping[str, Tensor], names: Mapping[str, tuple[str, int]]) -> dict[str, Tensor]:
    """Losses by the pairs' names."""
    return {theirs: times * losses[ours] for theirs, (ours, times) in names.items()}


def ready_to_train(model: Recognizer) -> Recognizer:
    """`model` as training pairs have it: in float64 and train mode, without dropout."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.double().train()


def given_input(case: ParityCase, name: str) -> Tensor:
    """An input of a training pair; real ones in float64."""
    value = torch.from_numpy(case.arrays[name])
    return value.double() if value.is_floating_point() else value


def draws(case: ParityCase) -> list[Tensor]:
    """The frames (R, B, i) that a pair's Monte-Carlo draws take out, i = 1, 2, ..."""
    names = sorted((name for name in case.arrays if name.startswith("gone_")), key=lambda name: int(name[5:]))
    return [given_input(case, name).long().transpose(0, 1) for name in names]


def after_backward(model: nn.Module, total: Tensor, parts: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """`total`, the gradients' norm and how far running means stand from zero, by the authors' names of modules.

    Args:
        total: Sum of the losses; its backward pass is run.
        parts: The authors' module -> ours; those without batch norm have no `running_` entry.
    """
    total.backward()
    outputs = {"total": total}
    for theirs, ours in parts.items():
        modules = [model.get_submodule(name) for name in ours]
        gradients = [p.grad for module in modules for p in module.parameters() if p.grad is not None]
        outputs[f"gradnorm_{theirs}"] = _norm(gradients)
        means = [b for module in modules for name, b in module.named_buffers() if name.endswith("running_mean")]
        if means:
            outputs[f"running_{theirs}"] = _norm(means)
    return outputs


def set_modes(model: nn.Module, in_train_mode: Sequence[str]) -> None:
    """Put the children of `model` that are named into train mode, the others into eval mode; forget gradients."""
    model.zero_grad()
    for name, part in model.named_children():
        part.train(name in in_train_mode)


def stage_outputs(
    model: nn.Module, phase: str, losses: Mapping[str, Tensor], parts: Mapping[str, Sequence[str]]
) -> dict[str, Tensor]:
    """A stage's loss as `loss_PHASE`, with its `reward` if it has one, and what `after_backward` tells."""
    total = torch.stack([value for name, value in losses.items() if name.startswith("loss")]).sum()
    outputs = after_backward(model, total, parts)
    outputs[f"loss_{phase}"] = outputs.pop("total")
    return outputs | {name: value for name, value in losses.items() if name == "reward"}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())
