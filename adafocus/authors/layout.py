"""How the authors' checkpoints of the AdaFocus family are laid out, and the renaming they need.

    state = family_state(content)                          # one flat dict, prefixes gone
    placed = place(state, [("global_CNN.", mobilenet("glance.", state, "global_CNN.")),
                           ("local_CNN.", resnet("focus."))])
    return converted("adafocus-v2", placed, told={...}, assumed={"patch_size": 128}, given=given)

Layouts: docs/methods/adafocus-checkpoints.md#layouts. Each method's own table stands in its `from_official`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.authors.official import Converted
from harness.errors import CheckpointError
from harness.layers.image_networks import mobilenet_from_flat

Rule = Callable[[str], str | None]
"""From the rest of a name, behind its rule's prefix, to our name; None for what no one needs, "" for what it
does not know."""

V1_PARTS = ("glancer", "focuser", "fc", "policy")
"""The state dicts that a file of AdaFocus V1 holds side by side."""

V1_POLICY = r"^(?:state_(encoder)|(gru)\b|(actor|critic)\.0)\."
"""Names in `policy` of a V1 file, with or without TSM; one of the groups is our name."""


@dataclass(frozen=True)
class Placed:
    """Tensors under our names, and the authors' names of the others."""

    state: dict[str, Tensor]
    unused: tuple[str, ...]
    unplaced: tuple[str, ...]
    origins: dict[str, str]
    """The authors' name by ours."""


def converted(
    method: str, placed: Placed, *, told: Mapping[str, Any], assumed: Mapping[str, Any], given: Mapping[str, Any]
) -> Converted:
    """What a method's `from_official` returns.

    Args:
        method: Name in the registry.
        placed: The tensors.
        told: Settings that follow from them.
        assumed: The usual values of settings that do not.
        given: What the user says; it wins.
    """
    return Converted(
        method,
        {**told, **assumed, **given},
        placed.state,
        placed.unused,
        placed.unplaced,
        placed.origins,
        tuple(name for name in assumed if name not in given),
    )


def family_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of an official file under the authors' names, without wrappers and `module.`.

    The parts of a V1 file get their entry's name in front: `glancer.net.features.0.0.weight`.

    Raises:
        CheckpointError: There is something else than tensors where tensors belong.
    """
    if "glancer" in content and "focuser" in content:
        parts = {part: content[part] for part in V1_PARTS if content.get(part) is not None}
        no_dicts = [part for part, tensors in parts.items() if not isinstance(tensors, Mapping)]
        if no_dicts:
            raise CheckpointError(f"the checkpoint holds no state dict at {', '.join(no_dicts)}")
        state = {f"{part}.{_bare(key)}": value for part, tensors in parts.items() for key, value in tensors.items()}
    else:
        inner = content.get("state_dict", content)
        state = {_bare(key): value for key, value in inner.items()} if isinstance(inner, Mapping) else {}
    odd = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if odd and len(odd) < len(state):
        raise CheckpointError(f"the checkpoint holds no tensor at {', '.join(map(str, odd[:5]))}")
    return {} if odd else state


def check_v1_stage(content: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a file from the way to a V1, with or without TSM, which cannot be evaluated yet."""
    there = [part for part in V1_PARTS if content.get(part) is not None]
    if there in (["glancer"], ["focuser"]):
        raise CheckpointError(
            f"the checkpoint holds a backbone of AdaFocus V1's first stage ({there[0]}); it cannot be evaluated"
        )
    if there == ["glancer", "focuser", "fc"]:
        raise CheckpointError(
            "the checkpoint holds AdaFocus V1's second stage (the authors' stage 1), without policy; it cannot be "
            "evaluated"
        )


def place(state: Mapping[str, Tensor], rules: Sequence[tuple[str, Rule]]) -> Placed:
    """Rename every tensor by the first rule whose prefix fits it.

    Raises:
        CheckpointError: Two tensors would get the same name.
    """
    found: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    unused, unplaced = [], []
    for key, value in state.items():
        rule = next(((prefix, rename) for prefix, rename in rules if key.startswith(prefix)), None)
        name = rule[1](key.removeprefix(rule[0])) if rule is not None else ""
        if name is None:
            unused.append(key)
        elif not name:
            unplaced.append(key)
        elif name in found:
            raise CheckpointError(f"the checkpoint fills {name} twice, from {origins[name]} and from {key}")
        else:  # batch norms' counters are vectors of one in some of the files
            origins[name] = key
            found[name] = value.reshape(()) if name.endswith("num_batches_tracked") else value
    return Placed(found, tuple(sorted(unused)), tuple(sorted(unplaced)), origins)


def under(target: str) -> Rule:
    """The rest as it is below `target`; wrappers of the temporal shift (`.net`) go."""
    return lambda rest: target + re.sub(r"\.net\.", ".", rest)


def substitute(pattern: str, replacement: str) -> Rule:
    """`re.sub` on the rest; a rest that the pattern does not fit is unknown."""

    def rename(rest: str) -> str:
        name, fits = re.subn(pattern, replacement, rest)
        return name if fits else ""

    return rename


def mobilenet(target: str, state: Mapping[str, Tensor], source: str) -> Rule:
    """A MobileNetV2 below `source` of the file, in either naming scheme, as our backbone below `target`.

    Its ImageNet classifier is not used.
    """
    names = [key.removeprefix(source) for key in state if key.startswith(source)]
    renamed = {theirs: ours for ours, theirs in mobilenet_from_flat({name: name for name in names}).items()}

    def rename(rest: str) -> str | None:
        if rest.startswith("classifier."):
            return None
        name, fits = re.subn(r"^features\.", f"{target}blocks.", renamed.get(rest, ""))
        return name if fits else ""

    return rename


def networks_on_tsn(glance: Rule) -> list[tuple[str, Rule]]:
    """Both networks and their auxiliary heads, V2 and Uni-AdaFocus on TSN-like networks."""
    return [
        ("global_CNN_fc.", under("glance_head.")),
        ("local_CNN_fc.", under("focus_head.")),
        ("global_CNN.", glance),
        ("local_CNN.", resnet("focus.")),
    ]


def networks_on_tsm(state: Mapping[str, Tensor]) -> list[tuple[str, Rule]]:
    """Both networks and their two heads each, V2 and Uni-AdaFocus on TSM."""
    return [
        ("global_CNN.new_fc.", under("glance.head.")),
        ("global_CNN.new_new_fc.", under("glance.aux_head.")),
        ("local_CNN.new_fc.", under("focus.head.")),
        ("local_CNN.new_new_fc.", under("focus.aux_head.")),
        ("global_CNN.base_model.", mobilenet("glance.backbone.", state, "global_CNN.base_model.")),
        ("local_CNN.base_model.", resnet("focus.backbone.")),
    ]


def uni_policies(auxiliary: str) -> list[tuple[str, Rule]]:
    """Uni-AdaFocus's policies, and the classifier `auxiliary` that the spatial one learns through."""
    return [
        (auxiliary, under("spatial_head.fc.")),
        ("spatial_policy.", under("spatial_policy.")),
        ("temporal_policy.", under("temporal_policy.")),
    ]


def uni_policy_widths(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Settings of Uni-AdaFocus's policies, out of our names."""
    return {
        "spatial_channels": state["spatial_policy.encoder.0.weight"].shape[0],
        "temporal_channels": state["temporal_policy.Tconv.0.weight"].shape[0],
    }


def count_heads(state: Mapping[str, Tensor], classifier: str) -> int:
    """Steps that the running-max classifier of this name has a head for, out of our names."""
    return sum(key.startswith(f"{classifier}.heads.") and key.endswith(".weight") for key in state)


_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def resnet(target: str) -> Rule:
    """A ResNet under torchvision's names or as numbered Sequential, with or without temporal shift.

    Its ImageNet classifier `fc` is not used.
    """

    def rename(rest: str) -> str | None:
        first, _, tail = rest.partition(".")
        if first == "fc":
            return None
        return under(target)(f"{_NUMBERED.get(first, first)}.{tail}")

    return rename


def _bare(key: Any) -> str:
    return str(key).removeprefix("module.")
