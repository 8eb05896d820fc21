"""How a backbone is trained on the stills of an embedded set, in place of ImageNet. No torch.

Done once per backbone and data set and shared by all methods and seeds. The stills show the target's colour, so
this gives the cue of where to look to everyone alike; reports say so (docs/embedded-sets.md#disclosures).
"""

from __future__ import annotations

from harness.contract.declarations import Stage, tiny_stage

PRETRAINING = "pretraining"
"""Stands where a method name does, for backbones trained on an embedded set's stills."""
CLASSES = 10
"""Digits, whatever the classes of the set."""


def pretraining_stage(backbone: str, size: str) -> Stage:
    """The recipe of a backbone's pre-training."""
    if size == "tiny":
        return tiny_stage(backbone, epochs=6, batch_size=64)
    return tiny_stage(backbone, epochs=12, batch_size=128, lr=1e-3)
